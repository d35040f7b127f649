"""FLUX.1: the model, its strategies and the denoiser, with the transformer's blocks as functions of their own.

Strategies and variants may change here: a family is an entry in `variants.py`. After a change of the denoiser or of its
blocks, run `tests/models/test_bit_identity.py`: it compares their bits with those of the library.
"""
