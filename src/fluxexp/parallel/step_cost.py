"""Estimate the time of a denoising step on several GPUs, to compare work layouts. It does not predict real times.

A block multiplies each token with 12 width^2 weights and computes attention: 24 tokens width^2 + 4 tokens^2 width FLOP
for one image. With Ulysses each rank sends parts of its queries, keys, values and results to the other ranks, in two
collectives per block. The rates are conservative for GPUs with NVLink. A step on an H200 ran at 560 TFLOP/s (132 ms at
1024 x 1024). There NVLink has 450 GB/s in each direction, and the estimate uses a third of it. Slower GPUs gain more
from context parallelism than the estimate says.
"""

from __future__ import annotations

from fluxexp.config.architecture import Architecture

_OPERATIONS_PER_S = 560e12
_BYTES_PER_S = 150e9
_COLLECTIVE_S = 30e-6
_BYTES = 2


def step_s(architecture: Architecture, tokens: int, ranks: int) -> float:
    """Seconds that `ranks` GPUs need for one step of one image of `tokens` tokens (text included) in bfloat16."""
    width = architecture.heads * architecture.head_dim
    operations = 24 * tokens * width**2 + 4 * tokens**2 * width
    seconds = operations / _OPERATIONS_PER_S / ranks
    if ranks > 1:
        num_bytes = 4 * tokens / ranks * (ranks - 1) / ranks * width * _BYTES
        seconds += num_bytes / _BYTES_PER_S + 2 * _COLLECTIVE_S
    return (architecture.num_blocks + architecture.controlnet_blocks) * seconds
