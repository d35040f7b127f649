"""Finds the measured ratios of MagCache and puts them into a config.

The ratios of a model are in the user's cache directory, one file for each number of steps. Rank 0 puts them into the
config before it computes the fingerprint. So they are part of the fingerprint and of config.yaml, and the other ranks
do not need the files.
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
    """Return the file of the ratios for this model, scheduler and number of steps: a JSON list of numbers."""
    scheduler = [config.scheduler.name, config.scheduler.shift]
    name = content_hash([model_payload(config.model), scheduler])
    return cache_directory() / "mag_ratios" / name / f"{config.sampling.steps}.json"


def with_measured_ratios(config: RunConfig) -> RunConfig:
    """Return `config` with the ratios that were measured for the nearest number of steps, if it asks for measured ones.

    Raises:
        ConfigError: no ratios were measured for this model and scheduler, or their file is damaged.
    """
    cache = config.optimization.step_cache
    if not isinstance(cache, MagCacheConfig) or not needs_ratios(config.optimization):
        return config
    file = ratios_file(config)
    measured = [int(other.stem) for other in file.parent.glob("*.json") if other.stem.isdecimal()]
    if not measured:
        hint = "run the same command with `python -m fluxexp.calibrate` first, or use flux_dev or a list of numbers"
        raise ConfigError(Problem(_KEY, "have not been measured for this model and scheduler", MEASURED, hint))
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
