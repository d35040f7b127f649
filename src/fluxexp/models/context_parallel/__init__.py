"""Context parallelism: several ranks make one image, each with a part of its tokens, and exchange data in attention.

Kernels and exchanges may change here. `tests/models/test_context.py` compares the latents with those of one rank, and
`tests/models/test_peer_exchange.py` checks the kernels on one GPU.
"""
