"""Weights that stay in host memory and stream to the GPU when a stage needs them."""
