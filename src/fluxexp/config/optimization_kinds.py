"""Interprets an `OptimizationConfig`: the kind of each setting, and the values that `auto` means. Never imports torch.

Rank 0 replaces `auto` by values before it computes the fingerprint. The fingerprint, config.yaml and the other ranks
only see these values. So the files of a run always say what changed its pixels: the same command makes two runs on a
machine with a GPU and on one without, and each run records its own values.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fluxexp.config.families import FAMILIES
from fluxexp.config.optimization_catalog import AUTO, OPTIMIZATIONS, OptimizationKind
from fluxexp.config.schema import MagCacheConfig, OptimizationConfig, RunConfig

MEASURED = "measured"


def is_settled(optimization: OptimizationConfig) -> bool:
    """Whether there is no `auto` that changes pixels, and no ratios that only this machine's cache holds."""
    return AUTO not in asdict(replace(optimization, offload=None)).values() and not needs_ratios(optimization)


def needs_ratios(optimization: OptimizationConfig) -> bool:
    """Whether the step cache uses measured ratios, which `mag_ratios.py` must fill in."""
    return isinstance(optimization.step_cache, MagCacheConfig) and optimization.step_cache.ratios == MEASURED


def settled(config: RunConfig, has_gpu: bool) -> RunConfig:
    """Return `config` with each `auto` replaced by the value for this type of device and this model family."""
    family = FAMILIES[config.model.family]
    automatic = [OPTIMIZATIONS[name] for name, value in asdict(config.optimization).items() if value == AUTO]
    chosen: dict[str, Any] = {
        each.name: each.settled(has_gpu) if family.supports(each.name) else each.off_value for each in automatic
    }
    return replace(config, optimization=replace(config.optimization, **chosen))


def chosen(optimization: OptimizationConfig, *kinds: OptimizationKind) -> dict[str, Any]:
    """Return the optimizations of these kinds that are on, with their values."""
    return {
        name: value
        for name, value in asdict(optimization).items()
        if value and OPTIMIZATIONS[name].kind_of(value) in kinds
    }
