"""Kernels and what runs them: Triton and plain versions of fused operations, FP8, attention, CUDA graphs.

Knows no model.
"""
