"""Prepares torch.compile, for the optimizations that use it."""

from __future__ import annotations

import shutil

import torch
from torch.utils._triton import has_triton

from fluxexp.models.kernels.compile_cache import keep_compiled_code
from fluxexp.models.optimizations.optimization_pass import NO_TRITON, NotHereError

_MAX_SHAPES = 256
"""Shapes for which a block may be compiled. The compiler's default limit is 8; a sweep may have more sizes."""


def require_compiler(device: torch.device) -> None:
    """Prepare to compile for `device`.

    Raises:
        NotHereError: what the compiler needs is not installed.
    """
    if device.type == "cuda":
        if not has_triton():
            raise NotHereError(NO_TRITON)
    elif not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise NotHereError("there is no C++ compiler")
    keep_compiled_code()
    import torch._dynamo

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MAX_SHAPES)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * _MAX_SHAPES)
