"""The settings in which points differ, and the reference of each point. Knows only configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fluxexp.config import RunConfig
from fluxexp.config.optimization_kinds import chosen

_GROUPS = ("model", "lora", "redux", "ip_adapter", "scheduler", "sampling", "dataset", "optimization", "output")
_NO_SETTINGS = (
    "sampling.batch_size",
    "sampling.images_per_sample",
    "dataset.limit",
    "dataset.length",
    "output.dir",
    "output.overwrite",
    "output.shards",
    "output.shard_mib",
)
"""They change how many images are made, how and where, but not the images."""
_EFFORT = ("sampling.steps", "scheduler.", "optimization.", "model.dtype", "lora.mixing")
"""Settings that change the effort for the same image."""
_NAMES = ("model.name", "dataset.kind")
"""If one of these differs, the other settings of its group are not listed."""


def references(configs: Sequence[RunConfig]) -> list[int | None]:
    """Number of the reference of each point: same settings except effort, no approximations, and the most steps.

    None for a point that is its own reference, and for a point without such a reference.
    """
    described = [settings_of(config) for config in configs]
    rests = [{k: v for k, v in s.items() if not k.startswith(_EFFORT)} for s in described]
    found: list[int | None] = []
    for number, rest in enumerate(rests):
        alike = [other for other, its in enumerate(rests) if its == rest and not is_approximate(configs[other])]
        best = max(alike, key=lambda other: _standing(configs[other], other), default=None)
        found.append(None if best == number else best)
    return found


def _standing(config: RunConfig, place: int) -> tuple[int, int, int]:
    """Rank of a point as a reference: most steps first, then fewest optimizations, then the earliest point."""
    return config.sampling.steps, -len(chosen(config.optimization, "lossless")), -place


def is_approximate(config: RunConfig) -> bool:
    """Whether the config uses an approximate optimization, which can change quality."""
    return bool(chosen(config.optimization, "approximate"))


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings in which points can differ, by dotted key, for example `sampling.steps`."""
    flat: dict[str, Any] = {}
    for group in _GROUPS:
        for name, value in asdict(getattr(config, group)).items():
            flat |= _flat(f"{group}.{name}", value)
    return {key: value for key, value in flat.items() if key not in _NO_SETTINGS}


def _flat(key: str, value: Any) -> dict[str, Any]:
    """A group inside of a group has its name as value; its other keys are separate settings."""
    if not isinstance(value, dict) or "name" not in value:
        return {key: value}
    return {key: value["name"]} | {f"{key}.{name}": inner for name, inner in value.items() if name != "name"}


def varied_settings(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """For each config, the settings in which any two configs differ."""
    described = [settings_of(config) for config in configs]
    keys = list(dict.fromkeys(key for settings in described for key in settings))
    # Points without a setting do not count: it varies if the points that have it differ.
    varied = [key for key in keys if len({repr(settings[key]) for settings in described if key in settings}) > 1]
    for name in _NAMES:
        if name in varied:
            group = name.partition(".")[0]
            varied = [key for key in varied if key == name or not key.startswith(f"{group}.")]
    return [{key: settings[key] for key in varied if key in settings} for settings in described]


def label(settings: Mapping[str, Any]) -> str:
    """A short label of `settings`: the last part of each key, and its value."""
    short = {name.rpartition(".")[2]: value for name, value in settings.items()}
    named = short if len(short) == len(settings) else settings
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in named.items()
    )
