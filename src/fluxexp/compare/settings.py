"""What points differ in, and which one each is measured from. Knows configs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fluxexp.config import RunConfig
from fluxexp.config.optimization_kinds import chosen

_GROUPS = ("model", "scheduler", "sampling", "dataset", "optimization", "output")
_NO_SETTINGS = (
    "sampling.batch_size",
    "sampling.images_per_sample",
    "dataset.limit",
    "dataset.length",
    "output.dir",
    "output.overwrite",
)
"""They say how much is made, how and where, not what."""
_EFFORT = ("sampling.steps", "scheduler.", "optimization.", "model.dtype")
"""Settings by which points get to the same picture with more or less effort."""
_NAMES = ("model.name", "dataset.kind")
"""Where these differ, the other settings of their group go without saying."""


def references(configs: Sequence[RunConfig]) -> list[int | None]:
    """For each point the one it is measured from: like it but for effort, without approximations, with the most steps.

    None for points that are their own reference, and where a setting other than effort has no such point.
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
    """How fit a point is to be measured from: most steps, then least done to the model, then the first."""
    return config.sampling.steps, -len(chosen(config.optimization, "lossless")), -place


def is_approximate(config: RunConfig) -> bool:
    """Whether anything is done to the model that its quality has to be judged for."""
    return bool(chosen(config.optimization, "approximate"))


def settings_of(config: RunConfig) -> dict[str, Any]:
    """What points can differ in, flat: `sampling.steps` and its like."""
    flat: dict[str, Any] = {}
    for group in _GROUPS:
        for name, value in asdict(getattr(config, group)).items():
            flat |= _flat(f"{group}.{name}", value)
    return {key: value for key, value in flat.items() if key not in _NO_SETTINGS}


def _flat(key: str, value: Any) -> dict[str, Any]:
    """A group inside a group goes by its name; its other keys are settings of their own."""
    if not isinstance(value, dict) or "name" not in value:
        return {key: value}
    return {key: value["name"]} | {f"{key}.{name}": inner for name, inner in value.items() if name != "name"}


def varied_settings(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Of each config the settings in which any two differ; a model or scheduler of another name says it all."""
    described = [settings_of(config) for config in configs]
    keys = list(dict.fromkeys(key for settings in described for key in settings))
    # A setting that some points do not have says nothing about them: it varies where those that have it differ.
    varied = [key for key in keys if len({repr(settings[key]) for settings in described if key in settings}) > 1]
    for name in _NAMES:
        if name in varied:
            group = name.partition(".")[0]
            varied = [key for key in varied if key == name or not key.startswith(f"{group}.")]
    return [{key: settings[key] for key in varied if key in settings} for settings in described]


def label(settings: Mapping[str, Any]) -> str:
    """`settings` in short: the last part of each key, and its value."""
    short = {name.rpartition(".")[2]: value for name, value in settings.items()}
    named = short if len(short) == len(settings) else settings
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in named.items()
    )
