"""What a run or a sweep did: its settings in one line, configuration, points and command. Pure functions."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.report.axes import Axes, Axis
from fluxexp.report.run_data import RunData, is_number
from fluxexp.report.run_facts import mapping, sequence
from fluxexp.report.sweep_data import SweepData
from fluxexp.report.wording import DASH, setting, short

_SAMPLING = ("steps", "guidance", "seed")
_MAX_VALUES = 12
"""Of a setting with more values than this, only the range or the first values are shown."""


@dataclass(frozen=True, slots=True)
class PointSettings:
    """A row of the table of all points that a sweep ran or tried to run."""

    label: str
    href: str | None
    directory: str
    status: str
    overrides: str
    """As typed on the command line."""


def run_title(data: RunData) -> str:
    """The title of a run's page: its name and its sampling settings."""
    name = data.setting("name")
    settings = _joined(*(_with(part, data.setting(f"sampling.{part}")) for part in _SAMPLING))
    return ": ".join(part for part in (str(name) if name else "", settings) if part) or data.name


def run_subtitle(data: RunData) -> str:
    """The other main settings of a run in one line, with the name of its directory."""
    return _joined(data.setting("model.name"), data.setting("scheduler.name"), data.name)


def sweep_title(data: SweepData, axes: Axes | None) -> str:
    """The title of a sweep's page: its name, and the settings that vary with their values."""
    if axes is None:
        return data.name
    name = next((point.run.setting("name") for point in data.points if point.run is not None), None)
    varied = " \u00d7 ".join(_levels(axis) for axis in axes.all)
    return f"{name}: {varied}" if name else varied


def configuration(runs: Sequence[RunData], tracking_url: Any = None) -> list[tuple[str, str]]:
    """Rows of name and value: model, settings, dataset, optimizations, devices and versions.

    Args:
        runs: one run, or the runs of a sweep. A row lists all values that they have.
        tracking_url: the address of the W&B run.
    """

    def get(path: str) -> str | None:
        return _listed(run.setting(path) for run in runs)

    summaries = [run.summary for run in runs]
    listed = sequence(summaries[0].get("ranks")) if summaries else ()
    ranks = [rank for rank in listed if isinstance(rank, Mapping)]
    devices = sorted({str(rank["device"]) for rank in ranks if rank.get("device")})
    size = f"{get('dataset.width')} \u00d7 {get('dataset.height')} px" if get("dataset.width") else None
    applied = _listed(", ".join(map(str, sequence(s.get("applied_optimizations")))) or "none" for s in summaries)
    versions = (_joined(*(f"{k} {v}" for k, v in mapping(s.get("versions")).items())) or None for s in summaries)
    rows: Iterable[tuple[str, Any]] = (
        ("Model", _joined(get("model.name"), get("model.path"), get("model.dtype"))),
        ("LoRA", _joined(get("lora.path"), _with("scale", get("lora.scale"))) if get("lora.path") else None),
        ("Redux", _joined(get("redux.path"), _with("scale", get("redux.scale"))) if get("redux.path") else None),
        ("IP-Adapter", _ip_adapter(get)),
        ("Scheduler", _joined(get("scheduler.name"), _with("shift", get("scheduler.shift")))),
        ("Sampling", _joined(*(_with(name, get(f"sampling.{name}")) for name in _SAMPLING))),
        ("True CFG", _second_pass(runs)),
        ("Prompt of T5", get("sampling.prompt_2")),
        ("Dataset", _joined(get("dataset.kind"), get("dataset.path"), size)),
        ("Optimizations", applied),
        ("Step cache", _step_cache(runs)),
        ("Devices", f"{len(ranks)} \u00d7 {', '.join(devices)}" if devices else None),
        ("Versions", _listed(versions)),
        ("Revision", _listed(summary.get("git_revision") for summary in summaries)),
        ("W&B", tracking_url),
    )
    return [(name, str(value)) for name, value in rows if value]


def _ip_adapter(get: Callable[[str], str | None]) -> str | None:
    path = get("ip_adapter.path")
    return _joined(path, _with("scale", get("ip_adapter.scale"))) if path else None


def point_settings(data: SweepData) -> list[PointSettings]:
    """A row per point, in the order of the axes. It includes points that could not start."""
    return [
        PointSettings(
            label=point.label,
            href=point.href,
            directory=str(point.values.get("directory") or DASH),
            status=str(point.values.get("status") or DASH).replace("_", " "),
            overrides=shlex.join(str(override) for override in sequence(point.values.get("overrides"))),
        )
        for point in data.in_order()
    ]


def command(overrides: Sequence[str], *, sweep: bool = False) -> str:
    """The shell command that makes a run (or with `sweep` a sweep) with these overrides."""
    words = ["accelerate", "launch", "-m", "fluxexp", *(["-m"] if sweep else []), *overrides]
    return " ".join(shlex.quote(word) for word in words)


def sweep_command(points: Sequence[Sequence[str]]) -> str | None:
    """The shell command that makes a sweep with these points.

    Args:
        points: the overrides of each point.

    Returns:
        the command; None if the points are not a complete grid, which one command could make.
    """
    if not points or len({len(point) for point in points}) > 1:
        return None
    names = [override.partition("=")[0] for override in points[0]]
    if any([override.partition("=")[0] for override in point] != names for point in points):
        return None
    columns = [list(dict.fromkeys(column)) for column in zip(*points, strict=True)]
    if math.prod(len(column) for column in columns) != len(points):
        return None
    typed = [
        column[0] if len(column) == 1 else f"{name}={','.join(override.partition('=')[2] for override in column)}"
        for name, column in zip(names, columns, strict=True)
    ]
    return command(typed, sweep=True)


def _second_pass(runs: Sequence[RunData]) -> str | None:
    """The scales of true CFG and the negative prompts of the config; None if no run has a second pass."""
    scales = [run.setting("sampling.true_cfg_scale") for run in runs]
    if not any(is_number(scale) and scale > 1 for scale in scales):
        return None
    negative = _listed(run.setting("sampling.negative_prompt") for run in runs)
    return _joined(_with("scale", _listed(scales)), _with("negative prompt", negative))


def _step_cache(runs: Sequence[RunData]) -> str | None:
    """The names of the step caches and the mean number of full steps per image; None without a step cache."""
    name = _listed(run.setting("optimization.step_cache.name") for run in runs)
    computed = _listed(run.summary.get("computed_steps_mean") for run in runs)
    return _joined(name, _with("full steps per image", computed)) if name else None


def _levels(axis: Axis) -> str:
    if len(axis.levels) <= _MAX_VALUES:
        return f"{short(axis.name)} {', '.join(axis.levels)}"
    if axis.is_number:
        return f"{short(axis.name)} {axis.levels[0]} to {axis.levels[-1]} ({len(axis.levels)} values)"
    return f"{short(axis.name)} ({len(axis.levels)} values)"


def _listed(values: Iterable[Any]) -> str | None:
    """Different values as a list, numbers in their order; None if there is none."""
    known = [value for value in values if value is not None]
    if known and all(map(is_number, known)):
        known.sort()
    texts = list(dict.fromkeys(map(setting, known)))
    if len(texts) > _MAX_VALUES:
        texts = [*texts[:_MAX_VALUES], f"and {len(texts) - _MAX_VALUES} more"]
    return ", ".join(texts) or None


def _with(name: str, value: Any) -> str | None:
    return None if value is None else f"{name} {setting(value)}"


def _joined(*parts: Any) -> str:
    return " \u00b7 ".join(str(part) for part in parts if part is not None)
