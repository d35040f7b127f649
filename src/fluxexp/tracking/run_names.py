"""Names and types of W&B runs. A name says what is special about a run, so it has settings and no hash."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

JobType = Literal["run", "point", "sweep"]
"""W&B's job type: a single run, a point of a sweep, or a sweep as a whole."""
_SHOWN = (
    "sampling.steps",
    "sampling.guidance",
    "sampling.true_cfg_scale",
    "sampling.controlnet_scale",
    "sampling.strength",
    "sampling.seed",
    "optimization.step_cache.name",
)
_USUALLY_1 = ("sampling.strength", "sampling.true_cfg_scale", "sampling.controlnet_scale")


def run_title(name: str, config: Mapping[str, Any]) -> str:
    """The name of a single run: its own name, the model, the scheduler, and its most important settings.

    `config` has the plain values of a run's config. It can come from another version of fluxexp.
    """
    words = [_value(config, "model.name"), _value(config, "scheduler.name")]
    settings = [(key, _value(config, key)) for key in _SHOWN]
    words += [f"{_short(key)}={_text(value)}" for key, value in settings if value is not None and _is_worth(key, value)]
    return f"{name}: {' '.join(str(word) for word in words if word)}" if any(words) else name


def sweep_title(name: str, settings: Sequence[Mapping[str, Any]]) -> str:
    """The name of a sweep: the name of its runs, the number of its points, and what varies in their `settings`."""
    varied = dict.fromkeys(_short(key) for point in settings for key in point)
    num = f"{len(settings)} point{'' if len(settings) == 1 else 's'}"
    return f"{name}: {num}" + (f" over {', '.join(varied)}" if varied else "")


def run_name(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The name of the only W&B run of a command: WANDB_NAME, or `name`. The config has no key for it."""
    return environ.get("WANDB_NAME") or name


def _value(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _short(key: str) -> str:
    *_, group, name = ("", *key.split("."))
    return group if name == "name" else name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_worth(key: str, value: Any) -> bool:
    """Leave out 1 where that is the default: most families cannot change the strength, and have no other scales."""
    return not (key in _USUALLY_1 and value == 1)
