"""What an `OptimizationConfig` means: the kind of each setting, and the values that stand behind `auto`. No torch.

Rank 0 settles `auto` before anything is named after the config. The fingerprint, config.yaml and the other ranks only
see what rank 0 chose. So pixels never depend on a device that no file mentions: the same command on a machine with a
GPU and on one without makes two runs, and each of them records its own settings.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fluxexp.config.families import FAMILIES
from fluxexp.config.optimization_catalog import AUTO, OPTIMIZATIONS, OptimizationKind
from fluxexp.config.schema import MagCacheConfig, OptimizationConfig, RunConfig

MEASURED = "measured"


def is_settled(optimization: OptimizationConfig) -> bool:
    """Whether no `auto` is left that changes pixels, and no figure that only this machine knows."""
    return AUTO not in asdict(replace(optimization, offload=None)).values() and not needs_ratios(optimization)


def needs_ratios(optimization: OptimizationConfig) -> bool:
    """Whether its step cache uses measured ratios, which `mag_ratios.py` has to fill in."""
    return isinstance(optimization.step_cache, MagCacheConfig) and optimization.step_cache.ratios == MEASURED


def settled(config: RunConfig, has_gpu: bool) -> RunConfig:
    """`config` with each `auto` replaced by what its declaration says for such a device and model family."""
    family = FAMILIES[config.model.family]
    automatic = [OPTIMIZATIONS[name] for name, value in asdict(config.optimization).items() if value == AUTO]
    chosen: dict[str, Any] = {
        each.name: each.settled(has_gpu) if family.supports(each.name) else each.off_value for each in automatic
    }
    return replace(config, optimization=replace(config.optimization, **chosen))


def chosen(optimization: OptimizationConfig, *kinds: OptimizationKind) -> dict[str, Any]:
    """The optimizations of these kinds that are on, with their values."""
    return {
        name: value
        for name, value in asdict(optimization).items()
        if value and OPTIMIZATIONS[name].kind_of(value) in kinds
    }
