"""FLUX.1: the denoising path of all its pipelines, with the transformer blocks taken apart."""
