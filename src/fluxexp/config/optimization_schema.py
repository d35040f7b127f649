"""Schema of the config group optimization, step caches included. docs/caches.md explains the step caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fluxexp.config.rules import Above, Range
from fluxexp.config.schema_types import Count

Switch = bool | Literal["auto"]
"""auto: rank 0 chooses by its device, GPU or CPU (`optimization_catalog.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBlockCacheConfig:
    """First Block Cache: skip all blocks but the first one at steps where the residual of the first one has changed
    little. It decides for each image of a batch separately."""

    name: Literal["first_block"]
    threshold: Annotated[float, Range(0)]
    """Largest change of the first block's residual at which the other blocks are skipped: mean absolute change since
    the last full step, divided by the mean absolute value at that step."""
    max_consecutive_skips: Count
    """Number of skipped steps after which a step is full in any case."""
    warmup_steps: Count
    """Number of steps at the start that are always full. At least 1, because the first step has nothing to reuse."""
    last_steps: Annotated[int, Range(0)]
    """Number of steps at the end that are always full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorSeerCacheConfig:
    """TaylorSeer: every `interval`-th step is full. At the others, the residual of all blocks is extrapolated."""

    name: Literal["taylorseer"]
    interval: Count
    """Steps from one full step to the next."""
    order: Annotated[int, Range(0, 2)]
    """Order of the extrapolation. 0 repeats the last residual."""
    warmup_steps: Count
    """Number of steps at the start that are always full."""
    last_steps: Annotated[int, Range(0)]
    """Number of steps at the end that are always full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MagCacheConfig:
    """MagCache: repeat the residual of all blocks at steps where its measured magnitude has changed little."""

    name: Literal["magcache"]
    threshold: Annotated[float, Range(0)]
    """Largest accumulated error since the last full step, relative to the magnitude of the residual. A step that would
    exceed it is full."""
    max_consecutive_skips: Count
    """Number of skipped steps after which a step is full in any case."""
    retention_ratio: Annotated[float, Range(0, 1)]
    """Fraction of the steps, at the start, that are always full."""
    last_steps: Annotated[int, Range(0)]
    """Number of steps at the end that are always full."""
    ratios: list[Annotated[float, Above(0)]] | Literal["measured", "flux_dev"]
    """Magnitude of the residual at each step, divided by its magnitude at the previous step. The list is stretched to
    the number of steps. measured: by `fluxexp.calibrate`, for this model and scheduler. flux_dev: the list that
    diffusers publishes for FLUX.1-dev."""


StepCacheConfig = FirstBlockCacheConfig | TaylorSeerCacheConfig | MagCacheConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationConfig:
    """The value of each optimization, in the order in which they are applied. false and null turn one off.

    `optimization_catalog.py` declares what each one does, its kind and what `auto` means for it. The summary says
    which ones were applied and which were skipped.
    """

    hoist_constants: Switch
    no_matmul_workspace: Switch
    attention_backend: str | None
    modulation_table: Switch
    fused_kernels: Switch
    fp8_linears: Switch
    fp8_attention: Switch
    fused_vae: Switch
    text_encoder_weights: Literal["fp8", "int8"] | None
    offload: Literal["auto", "text_encoders", "model", "group", "sequential"] | None
    onednn_linears: Switch
    compile_blocks: Switch
    cuda_graph: Switch
    compile_vae: Switch
    vae_tiling: Switch
    text_cache: Switch
    step_cache: StepCacheConfig | None
