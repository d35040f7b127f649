"""The VAE with fused kernels.

It replaces blocks of the library by blocks with the same layers and arithmetic. `tests/models/test_optimizations.py`
compares the pixels; the kernels themselves are in `models/kernels/`.
"""
