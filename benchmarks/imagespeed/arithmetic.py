"""Computes the operations of a denoising step, and measures how fast the device multiplies matrices.

It does not depend on engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fluxexp.models.kernels import onednn

_MATRIX = {"cuda": 8192, "cpu": 1024}
"""Side of the matrices that `matmul_flops` multiplies."""
_SECONDS = {"cuda": 1.0, "cpu": 0.3}
"""Minimum duration of the measurement."""


def step_flop(transformer: Mapping[str, Any], image_tokens: int, text_tokens: int) -> float:
    """Floating-point operations of one denoising step of one image. A multiply-add counts as two operations.

    Args:
        transformer: config of a FLUX transformer in diffusers' format.
        image_tokens: number of tokens of the image.
        text_tokens: number of tokens of its prompt.
    """
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    double, single = transformer["num_layers"], transformer["num_single_layers"]
    tokens = image_tokens + text_tokens
    out_channels = transformer.get("out_channels") or transformer["in_channels"]
    ends = image_tokens * width * (transformer["in_channels"] + out_channels)
    ends += text_tokens * transformer["joint_attention_dim"] * width
    # QKV, output and both MLP matrices have the same number of operations in both kinds of blocks.
    linears = (double + single) * 12 * tokens * width**2
    attention = (double + single) * 2 * tokens**2 * width
    modulation = (12 * double + 3 * single + 2) * width**2
    return 2.0 * float(ends + linears + attention + modulation)


def matmul_flops(device: torch.device) -> float:
    """Sustained floating-point operations per second of a large matrix product: bfloat16 on a GPU, float32 on a CPU.

    On a CPU it tries PyTorch's default and, if it is available, oneDNN, and the faster one counts.
    """
    size = _MATRIX[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = left @ right
    products: list[Callable[[], Any]] = [lambda: torch.mm(left, right, out=out)]
    if onednn.why_unavailable(device, dtype) is None:
        products.append(lambda: onednn.linear(left, right, None))
    return 2.0 * size**3 / min(_seconds(product, device) for product in products)


def _seconds(product: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one product, averaged over a sequence of products."""
    number, seconds = 1, 0.0
    while seconds < _SECONDS[device.type]:  # double `number` until it takes long enough; this also warms up the device
        synchronize(device)
        start = time.perf_counter()
        for _ in range(number):
            product()
        synchronize(device)
        seconds = time.perf_counter() - start
        number *= 2
    return seconds / (number // 2)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
