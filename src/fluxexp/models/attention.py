"""Attention kernels: those of PyTorch without copies around them, and a choice by measuring them on the device at hand.

What was measured is kept in fluxexp's cache directory for each device and shape, so that all processes on a machine
choose alike, and the next ones without measuring.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxexp.models.blocks import Attend
from fluxexp.models.compile_cache import cache_file, exclusively

_KERNELS: Mapping[str, SDPBackend | None] = {
    "native": None,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
}
"""By the library's names. The first is preferred where others are hardly faster."""
_CLEARLY = 0.97
_REPEATS = 15


def direct_attention(name: str) -> Attend | None:
    """The kernel of the library's backend `name` on tensors as they lie; None where only the library knows it.

    The library copies queries, keys and values into another order first, which these kernels can do without.
    """
    if name not in _KERNELS:
        return None
    kernel = _KERNELS[name]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if kernel is None:
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    return attend


def fastest_attention(
    tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[str, str]:
    """The fastest backend for one image of `tokens` tokens, and in words how it compares with the others.

    Backends that do not work here are left out.
    """
    if device.type != "cuda":
        return "native", "the only one on a CPU"
    name = torch.cuda.get_device_name(device)
    key = ["attention", name, torch.__version__, tokens, heads, head_dim, str(dtype), *_KERNELS]
    file = cache_file("attention", key, ".json")
    with exclusively(file.with_suffix(".lock")):
        with suppress(OSError, ValueError):
            return _choice(json.loads(file.read_text(encoding="utf-8")))
        measured = _measured(torch.randn(3, 1, tokens, heads, head_dim, device=device, dtype=dtype))
        with suppress(OSError):  # a cache that cannot be written costs the next start a second
            file.write_text(json.dumps(measured), encoding="utf-8")
    return _choice(measured)


def _choice(measured: Mapping[str, float]) -> tuple[str, str]:
    best = min(measured, key=lambda name: measured[name])
    preferred = next(name for name in measured if measured[name] * _CLEARLY <= measured[best])
    return preferred, ", ".join(f"{name} {1e6 * seconds:.0f} us" for name, seconds in measured.items())


def _measured(qkv: torch.Tensor) -> dict[str, float]:
    """Seconds of each backend that works."""
    seconds = {}
    for name in _KERNELS:
        with suppress(RuntimeError):
            seconds[name] = _time(name, qkv)
    return seconds


@torch.inference_mode()
def _time(name: str, qkv: torch.Tensor) -> float:
    attend = direct_attention(name)
    assert attend is not None
    query, key, value = qkv
    seconds = []
    for _ in range(_REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        attend(query, key, value)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
