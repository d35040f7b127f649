"""Matrix products without a workspace. cuBLASLt then uses kernels without counters, which need no memset per product.

PyTorch reads the size of the workspace from the environment at the first product of a process. So the first model of a
process decides for all models of that process.
"""

from __future__ import annotations

import os

import torch

_VARIABLE = "CUBLASLT_WORKSPACE_SIZE"
"""In KiB. PyTorch's default is some MiB (aten/src/ATen/cuda/CublasHandlePool.cpp)."""


class _Process:
    is_fixed = False
    """Whether the process has computed a product, so that PyTorch does not read the environment any more."""


def disable_workspace(device: torch.device) -> str | None:
    """Let this process compute products without a workspace. Returns the reason if it is too late or not possible."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "there is no NVIDIA GPU"
    if not _Process.is_fixed:
        os.environ.setdefault(_VARIABLE, "0")
    if os.environ.get(_VARIABLE) != "0":
        return f"this process already uses a workspace: {_VARIABLE} is {os.environ.get(_VARIABLE, 'not set')}"
    return None


def fix_workspace(device: torch.device) -> bool:
    """Record that this process computes products on `device` from now on. Returns whether they have no workspace."""
    if device.type != "cuda":
        return False
    _Process.is_fixed = True
    return os.environ.get(_VARIABLE) == "0"
