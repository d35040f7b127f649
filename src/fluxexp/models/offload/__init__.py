"""Offloading: weights stay in host memory and stream to the GPU when a stage needs them.

`offload_plan.py` decides how much stays on the GPU, and `weight_streaming.py` moves weights. Policies may change here.
They must not change a bit of the results: `tests/models/test_weight_streaming.py` compares them.
"""
