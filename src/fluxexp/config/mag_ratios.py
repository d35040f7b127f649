"""MagCache's ratios as they were measured: where they are kept, and how they get into a config.

A model's ratios lie in the user's cache directory, a file for each number of steps. Rank 0 writes them into the config
before a run gets its name: so they are part of its fingerprint and its config.yaml, and no rank looks for them itself.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fluxexp.config.fingerprint import model_payload
from fluxexp.config.optimization_kinds import MEASURED, needs_ratios
from fluxexp.config.schema import MagCacheConfig, RunConfig
from fluxexp.config.user_cache import cache_directory
from fluxexp.errors import ConfigError, Problem
from fluxexp.records import content_hash

_KEY = "optimization.step_cache.ratios"


def ratios_file(config: RunConfig) -> Path:
    """Where the ratios of this model, scheduler and number of steps are kept: a JSON list of numbers."""
    scheduler = [config.scheduler.name, config.scheduler.shift]
    name = content_hash([model_payload(config.model), scheduler])
    return cache_directory() / "mag_ratios" / name / f"{config.sampling.steps}.json"


def with_measured_ratios(config: RunConfig) -> RunConfig:
    """`config` with the ratios that were measured for it, if it asks for them: those of the nearest number of steps.

    Raises:
        ConfigError: there are none, or their file is damaged.
    """
    cache = config.optimization.step_cache
    if not isinstance(cache, MagCacheConfig) or not needs_ratios(config.optimization):
        return config
    file = ratios_file(config)
    measured = [int(other.stem) for other in file.parent.glob("*.json") if other.stem.isdecimal()]
    if not measured:
        hint = "run the same command with `python -m fluxexp.calibrate` first, or use flux_dev or a list"
        raise ConfigError(Problem(_KEY, "were not measured for this model and scheduler yet", MEASURED, hint))
    steps = min(measured, key=lambda number: (abs(number - config.sampling.steps), -number))
    ratios = _read(file.with_name(f"{steps}.json"))
    return replace(config, optimization=replace(config.optimization, step_cache=replace(cache, ratios=ratios)))


def _read(file: Path) -> list[float]:
    try:
        ratios = [float(value) for value in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        hint = "measure them again with `python -m fluxexp.calibrate`"
        raise ConfigError(Problem(_KEY, f"cannot be read ({error})", str(file), hint)) from error
    return ratios
