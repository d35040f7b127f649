"""Kernels and what runs them: fused operations (Triton and plain), FP8, attention, side streams and CUDA graphs.

This package knows no model. To change a fused operation, change its kernel in `triton_kernels.py` and its plain version
in `fused_ops.py` together: `tests/models/test_fused_ops.py` compares them on a GPU. The order of roundings matters: an
optimization that is declared exact must keep the bits of the library.
"""
