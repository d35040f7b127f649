"""Checks a config across keys and against files on disk. `build.py` checks types and ranges of single keys.

Never imports torch, so that mistakes are reported within a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from fluxexp.address import Address
from fluxexp.config.architecture import Architecture
from fluxexp.config.build import unknown_name
from fluxexp.config.checkpoint_checks import model_is_there
from fluxexp.config.controlnet_checks import controlnet_fits
from fluxexp.config.engine_checks import engine_can_start
from fluxexp.config.family_checks import FAMILY_RULES
from fluxexp.config.generation_schema import EVALUATIONS_PER_STEP
from fluxexp.config.ip_adapter_checks import ip_adapter_fits
from fluxexp.config.lora_checks import loras_fit
from fluxexp.config.optimization_catalog import AUTO, FASTEST
from fluxexp.config.optimization_needs import unmet_needs
from fluxexp.config.redux_checks import redux_fits
from fluxexp.config.schema import (
    FluxModelConfig,
    MagCacheConfig,
    RayEngineConfig,
    RunConfig,
    TaylorSeerCacheConfig,
)
from fluxexp.errors import ConfigError, Problem
from fluxexp.rank_environment import RankEnvironment

ATTENTION_BACKENDS = frozenset(
    [
        "_flash_3",
        "_flash_3_hub",
        "_flash_3_varlen_hub",
        "_flash_varlen_3",
        "_native_cudnn",
        "_native_efficient",
        "_native_flash",
        "_native_math",
        "_native_npu",
        "_native_xla",
        "_sage_qk_int8_pv_fp16_cuda",
        "_sage_qk_int8_pv_fp16_triton",
        "_sage_qk_int8_pv_fp8_cuda",
        "_sage_qk_int8_pv_fp8_cuda_sm90",
        "aiter_fa2_hub",
        "flash",
        "flash_4_hub",
        "flash_hub",
        "flash_varlen",
        "flash_varlen_hub",
        "flex",
        "native",
        "sage",
        "sage_blackwell_hub",
        "sage_hub",
        "sage_varlen",
        "xformers",
    ]
)
"""Attention backends of the pinned version of diffusers; a test compares them."""
_WITH_RING = (None, AUTO, FASTEST, "native", "_native_cudnn", "_native_flash")
"""Attention backends that ring attention may replace by its own kernels."""


def check(config: RunConfig) -> None:
    """Check combinations of keys, and the files that the config names.

    Raises:
        ConfigError: with all problems that were found.
    """
    problems = [problem for rule in _RULES for problem in rule(config)]
    if problems:
        raise ConfigError(problems)


def _world_size_is_the_expected_one(config: RunConfig) -> Iterator[Problem]:
    expected = config.parallelism.expect_world_size
    actual = RankEnvironment.from_environment().world_size
    if expected is not None and expected != actual:
        hint = f"start {expected} process(es), or use null for any number"
        what = f"does not match: {actual} process(es) were started"
        yield Problem("parallelism.expect_world_size", what, expected, hint)


def _output_can_be_written(config: RunConfig) -> Iterator[Problem]:
    if config.output.dir is None or not Address.of(config.output.dir).is_local:
        return  # a store says itself what is wrong with it
    existing = Path(config.output.dir).expanduser().absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what, hint = f"cannot be created, because {existing} is not writable", "choose another directory"
        yield Problem("output.dir", what, config.output.dir, hint)


def _shards_have_their_library(config: RunConfig) -> Iterator[Problem]:
    if config.output.shards and find_spec("pyarrow") is None:
        yield Problem("output.shards", "needs pyarrow, which is not installed", True, "pip install 'fluxexp[parquet]'")


def _attention_backend_is_known(config: RunConfig) -> Iterator[Problem]:
    name = config.optimization.attention_backend
    if name not in (None, AUTO, FASTEST, *ATTENTION_BACKENDS):
        hint = unknown_name(str(name), {FASTEST, *ATTENTION_BACKENDS}, "allowed")
        yield Problem("optimization.attention_backend", "is not an attention backend of diffusers", name, hint)


def _step_cache_can_work(config: RunConfig) -> Iterator[Problem]:
    cache = config.optimization.step_cache
    if cache is None:
        return
    scheduler = config.scheduler.name
    if isinstance(cache, TaylorSeerCacheConfig) and EVALUATIONS_PER_STEP.get(scheduler, 1) > 1:
        what = f"extrapolates from step to step, but {scheduler} evaluates each noise level more than once"
        yield Problem("optimization.step_cache", what, cache.name, "use first_block or magcache, or another scheduler")
    if isinstance(cache, MagCacheConfig) and cache.ratios == []:
        yield Problem("optimization.step_cache.ratios", "must not be empty", "[]", "use measured or flux_dev")


def _needs_of_optimizations_are_met(config: RunConfig) -> Iterator[Problem]:
    yield from unmet_needs(config.optimization)


def _context_parallelism_can_work(config: RunConfig) -> Iterator[Problem]:
    parallelism = config.parallelism
    if parallelism.context_size is not None and parallelism.mode not in ("context", "auto"):
        what = f"has no effect with parallelism.mode={parallelism.mode}"
        yield Problem("parallelism.context_size", what, parallelism.context_size, "use parallelism=context")
    world_size = RankEnvironment.from_environment().world_size
    if parallelism.mode == "context" and isinstance(config.engine, RayEngineConfig):
        yield from _model_can_be_split(config, parallelism.context_size or 1)
        return
    if parallelism.mode != "context" or world_size == 1:
        return
    size = parallelism.context_size or world_size
    if world_size % size:
        divisors = [str(number) for number in range(1, world_size + 1) if world_size % number == 0]
        hint = f"use one of {', '.join(divisors)}, or start a different number of processes"
        yield Problem("parallelism.context_size", f"does not divide the {world_size} processes", size, hint)
    if size > 1:
        yield from _model_can_be_split(config, size)


def _model_can_be_split(config: RunConfig, size: int) -> Iterator[Problem]:
    optimization, kind = config.optimization, config.parallelism.context_kind
    together = f"context parallelism on {size} ranks"
    if optimization.hoist_constants is False:
        hint = "use true: it is exact"
        yield Problem("optimization.hoist_constants", f"must be true for {together}", False, hint)
    if optimization.fp8_attention is True:
        hint = "use optimization.fp8_attention=false; fp8_linears may stay on"
        yield Problem("optimization.fp8_attention", f"does not work with {together}", True, hint)
    backend = optimization.attention_backend
    if kind == "ring" and backend not in _WITH_RING:
        what = "has no effect with parallelism.context_kind=ring, which has its own kernels"
        hint = f"use {FASTEST}, or parallelism.context_kind=ulysses"
        yield Problem("optimization.attention_backend", what, backend, hint)
    text_tokens = config.sampling.max_sequence_length
    if text_tokens is not None and text_tokens < size:
        what = f"is too small for {together}"
        yield Problem("sampling.max_sequence_length", what, text_tokens, f"use at least {size}")
    if kind == "ulysses" and isinstance(config.model, FluxModelConfig):
        heads = Architecture.of(config.model).heads
        if heads < size:
            what = f"is larger than {heads}, the number of attention heads, which ulysses splits over ranks"
            hint = f"use at most {heads}, or parallelism.context_kind=ring"
            yield Problem("parallelism.context_size", what, size, hint)


_RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    *FAMILY_RULES,
    engine_can_start,
    _world_size_is_the_expected_one,
    model_is_there,
    _output_can_be_written,
    _shards_have_their_library,
    _attention_backend_is_known,
    _step_cache_can_work,
    _needs_of_optimizations_are_met,
    _context_parallelism_can_work,
    loras_fit,
    redux_fits,
    ip_adapter_fits,
    controlnet_fits,
)
