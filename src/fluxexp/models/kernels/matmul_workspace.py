"""Matrix products without a workspace: cuBLASLt then takes kernels that need no counters cleared before each.

The workspace is the process's, read from the environment when the library makes its first product: a process keeps what
its first model asked for. Knows no model.
"""

from __future__ import annotations

import os

import torch

_VARIABLE = "CUBLASLT_WORKSPACE_SIZE"
"""In KiB; PyTorch gives some MiB by default (aten/src/ATen/cuda/CublasHandlePool.cpp)."""


class _Process:
    is_settled = False
    """Whether a product was made, so that the environment is read no more."""


def do_without(device: torch.device) -> str | None:
    """Have the products of this process made without a workspace, if it made none yet; else why that cannot be."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "there is no GPU of NVIDIA's"
    if not _Process.is_settled:
        os.environ.setdefault(_VARIABLE, "0")
    if os.environ.get(_VARIABLE) != "0":
        return f"this process multiplies with a workspace: {_VARIABLE} is {os.environ.get(_VARIABLE, 'not set')}"
    return None


def settle(device: torch.device) -> bool:
    """Note that products are made on `device` from now on; whether they have no workspace, asked for or not."""
    if device.type != "cuda":
        return False
    _Process.is_settled = True
    return os.environ.get(_VARIABLE) == "0"
