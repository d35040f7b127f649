"""How long ranks need for a step that they take together, by a formula: to compare ways to spread work, not to promise.

A block multiplies each token with 12 width^2 weights, and attends: 24 tokens width^2 + 4 tokens^2 width operations for
an image. With Ulysses each rank sends a part of its queries, keys, values and results to the others, in two
collectives a block. The rates are on the careful side for GPUs with NVLink: 560 TFLOP/s in a step was measured on an
H200 (132 ms at 1024 x 1024), where eight GPUs are linked by 450 GB/s each way, of which a third is taken here; slower
GPUs gain more by company.
"""

from __future__ import annotations

from fluxexp.config.architecture import Architecture

_OPERATIONS_PER_S = 560e12
_BYTES_PER_S = 150e9
_COLLECTIVE_S = 30e-6
_BYTES = 2


def step_s(architecture: Architecture, tokens: int, ranks: int) -> float:
    """Seconds of `ranks` GPUs for a step of one image of `tokens` tokens, text included, in sixteen bits."""
    width = architecture.heads * architecture.head_dim
    operations = 24 * tokens * width**2 + 4 * tokens**2 * width
    seconds = operations / _OPERATIONS_PER_S / ranks
    if ranks > 1:
        num_bytes = 4 * tokens / ranks * (ranks - 1) / ranks * width * _BYTES
        seconds += num_bytes / _BYTES_PER_S + 2 * _COLLECTIVE_S
    return architecture.num_blocks * seconds
