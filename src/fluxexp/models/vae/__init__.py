"""The VAE with fused kernels."""
