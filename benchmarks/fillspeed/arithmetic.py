"""How much arithmetic a denoising step is, and how fast the device multiplies matrices. Knows no engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fluxexp.models.kernels import onednn

_MATRIX = {"cuda": 8192, "cpu": 1024}
_SECONDS = {"cuda": 1.0, "cpu": 0.3}


def step_flop(transformer: Mapping[str, Any], image_tokens: int, text_tokens: int) -> float:
    """Floating-point operations of one denoising step of one image, a multiply-add being two.

    Args:
        transformer: config of a FLUX transformer, as diffusers writes it.
        image_tokens: of the image; `text_tokens`: of its prompt.
    """
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    double, single = transformer["num_layers"], transformer["num_single_layers"]
    tokens = image_tokens + text_tokens
    out_channels = transformer.get("out_channels") or transformer["in_channels"]
    ends = image_tokens * width * (transformer["in_channels"] + out_channels)
    ends += text_tokens * transformer["joint_attention_dim"] * width
    linears = (double + single) * 12 * tokens * width**2  # qkv, output and both MLP matrices, of either kind of block
    attention = (double + single) * 2 * tokens**2 * width
    modulation = (12 * double + 3 * single + 2) * width**2
    return 2.0 * float(ends + linears + attention + modulation)


def matmul_flops(device: torch.device) -> float:
    """Operations a second of a large matrix product (bfloat16 on a GPU, float32 on a CPU) sustained for a while.

    On a CPU by PyTorch's choice or by oneDNN, whichever is faster.
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
    """Of one product among many in a row."""
    number, seconds = 1, 0.0
    while seconds < _SECONDS[device.type]:  # doubled until it takes long enough: also warms the device up
        synchronize(device)
        start = time.perf_counter()
        for _ in range(number):
            product()
        synchronize(device)
        seconds = time.perf_counter() - start
        number *= 2
    return seconds / (number // 2)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
