"""What is done to a loaded pipeline for speed or memory: an ordered list of named steps, each optional.

A step that is asked for and cannot be applied is an error; nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxexp.config.schema import Optimization
from fluxexp.errors import ModelError


def _attention_backend(pipeline: Any, config: Optimization) -> str | None:
    if config.attention_backend is None:
        return None
    pipeline.transformer.set_attention_backend(config.attention_backend)
    return f"attention_backend={config.attention_backend}"


def _compile_blocks(pipeline: Any, config: Optimization) -> str | None:
    if not config.compile_blocks:
        return None
    pipeline.transformer.compile_repeated_blocks(fullgraph=True)
    return "compile_blocks"


def _vae_tiling(pipeline: Any, config: Optimization) -> str | None:
    if not config.vae_tiling:
        return None
    pipeline.vae.enable_tiling()
    return "vae_tiling"


_STEPS: tuple[Callable[[Any, Optimization], str | None], ...] = (_attention_backend, _compile_blocks, _vae_tiling)


def apply_optimizations(pipeline: Any, config: Optimization) -> list[str]:
    """Apply what `config` asks for, in order; the names of what was applied.

    Raises:
        ModelError: something asked for cannot be applied to this pipeline here.
    """
    applied = []
    for step in _STEPS:
        try:
            name = step(pipeline, config)
        except (ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise ModelError(f"optimization{step.__name__.replace('_', '.', 1)} cannot be applied: {error}") from error
        if name is not None:
            applied.append(name)
    return applied
