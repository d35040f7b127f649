"""Converts the values in a run's files to the texts, figures and table rows that the templates show. Pure functions."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.records import Record
from fluxexp.report.run_data import RunData
from fluxexp.report.wording import DASH, duration, number, percent, setting

MAX_LISTED_FAILURES = 100
"""About how many failed tasks a page lists by sample key, over all errors."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure at the top of the page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The tasks that failed with the same error."""

    error: str
    count: int
    samples: Sequence[str]
    """Sample keys of the first of these tasks."""


def status_of(data: RunData) -> str:
    """The status in summary.json, or `unfinished` without one."""
    return str(data.summary.get("status") or "unfinished")


def headline(data: RunData, quality_metric: str | None) -> list[Figure]:
    """The known figures at the top of a run's page: number of images, quality, cost and speed."""
    num_ok, num_failed = data.num_ok, data.num_failed
    num_tasks = data.summary.get("num_tasks")
    requested = f"of {number(num_tasks)}" if isinstance(num_tasks, int) and num_tasks != num_ok else ""
    note = ", ".join(part for part in (requested, _failed(num_failed)) if part)
    images = Figure("Images", number(num_ok), note)
    return [images, *_quality(data.summary, quality_metric), *cost_figures(data.summary), *_speed(data.summary)]


def cost_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Device time, energy and price per image, as far as they are known."""
    cost = mapping(summary.get("cost"))
    seconds, per_hour = cost.get("device_s_per_image"), cost.get("images_per_hour_per_device")
    note = f"{number(per_hour)} images per device and hour" if per_hour else ""
    found = [Figure("Device time per image", duration(seconds), note)] if seconds is not None else []
    if cost.get("joules_per_image") is not None:
        found.append(Figure("Energy per image", f"{number(cost['joules_per_image'])} J"))
    if cost.get("usd_per_image") is not None:
        found.append(Figure("Price per image", f"${number(cost['usd_per_image'])}"))
    return found


def interval(value: Mapping[str, Any]) -> str:
    """The confidence interval of a mean, for example `0.81 to 0.85`; empty if there is none."""
    low, high = value.get("low"), value.get("high")
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def in_short(data: RunData) -> str:
    """The main settings of a run in one line."""
    get = data.setting
    names = (_with(name, get(f"sampling.{name}")) for name in ("steps", "guidance", "seed"))
    return _joined(get("model.name"), get("scheduler.name"), *names)


def configuration(data: RunData) -> list[tuple[str, str]]:
    """Rows of name and value: model, settings, dataset, optimizations, devices and versions."""
    get = data.setting
    ranks = [rank for rank in sequence(data.summary.get("ranks")) if isinstance(rank, Mapping)]
    devices = sorted({str(rank.get("device")) for rank in ranks if rank.get("device")})
    size = f"{get('dataset.width')} \u00d7 {get('dataset.height')} px" if get("dataset.width") else None
    rows: Iterable[tuple[str, Any]] = (
        ("Model", _joined(get("model.name"), get("model.path"), get("model.dtype"))),
        ("Scheduler", _joined(get("scheduler.name"), _with("shift", get("scheduler.shift")))),
        ("Sampling", _joined(*(_with(name, get(f"sampling.{name}")) for name in ("steps", "guidance", "seed")))),
        ("Dataset", _joined(get("dataset.kind"), get("dataset.path"), size)),
        ("Optimizations", ", ".join(map(str, sequence(data.summary.get("applied_optimizations")))) or "none"),
        ("Step cache", _step_cache(data)),
        ("Devices", f"{len(ranks)} \u00d7 {', '.join(devices)}" if devices else None),
        ("Versions", _joined(*(f"{k} {v}" for k, v in mapping(data.summary.get("versions")).items()))),
        ("Revision", data.summary.get("git_revision")),
        ("W&B", mapping(data.summary.get("tracking")).get("url")),
    )
    return [(name, str(value)) for name, value in rows if value]


def _step_cache(data: RunData) -> str | None:
    """The name of the step cache and the mean number of full steps per image; None without a step cache."""
    name, computed = data.setting("optimization.step_cache.name"), data.summary.get("computed_steps_mean")
    return _joined(name, _with("full steps per image", computed)) if name else None


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


def rank_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row per rank: its images, its time by activity, and figures of its device. Omits columns without values."""
    rows = []
    for rank in sequence(summary.get("ranks")):
        if not isinstance(rank, Mapping):
            continue
        row = {
            "Rank": number(rank.get("rank")),
            "Device": str(rank.get("device") or DASH),
            "Images": number(rank.get("num_images")),
            "Stolen tasks": number(rank.get("num_stolen")),
            "Failed": number(rank.get("num_failed")),
            "Images/s": number(rank.get("images_per_s")),
            "Relative speed": number(rank.get("relative_speed")),
        }
        row |= {name.capitalize(): duration(rank.get(f"{name}_s")) for name in ("busy", "wait", "idle", "load")}
        row |= {"Utilization": percent(rank.get("utilisation_mean"))}
        row |= {"SM activity": percent(rank.get("sm_activity_mean")), "Power, W": number(rank.get("power_mean_w"))}
        row |= {"Memory, GiB": number(rank.get("memory_peak_gib")), "Error": str(rank.get("error") or DASH)}
        rows.append(row)
    empty = {name for name in (rows[0] if rows else ()) if all(row[name] == DASH for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def failures(records: Iterable[Record]) -> list[FailureGroup]:
    """Failed tasks grouped by error, the most frequent error first.

    Each group lists at least one sample key. All groups share `MAX_LISTED_FAILURES` keys equally.
    """
    groups: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            groups.setdefault(str(record.error or "unknown error"), []).append(record.sample_key)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    num_listed = max(1, MAX_LISTED_FAILURES // max(1, len(ordered)))
    return [FailureGroup(error, len(keys), keys[:num_listed]) for error, keys in ordered]


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row per metric: its mean, its interval, and a description."""
    rows = []
    for name, value in scores.items():
        metric, mean = info(name), mapping(value)
        direction = {True: "higher is better", False: "lower is better", None: ""}[metric.higher_is_better]
        rows.append(
            {
                "title": metric.title,
                "unit": metric.unit,
                "mean": number(mean.get("mean")),
                "interval": interval(mean),
                "num": number(mean.get("num")),
                "description": "; ".join(part for part in (metric.description, direction) if part),
            }
        )
    return rows


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one. Files of other versions can have other types."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """`value` if it is a list or tuple, else an empty one."""
    return value if isinstance(value, list | tuple) else ()


def _quality(summary: Mapping[str, Any], name: str | None) -> list[Figure]:
    mean = mapping(mapping(summary.get("scores")).get(name or ""))
    if name is None or mean.get("mean") is None:
        return []
    within = interval(mean)
    note = f"95 % interval: {within}" if within else ""
    return [Figure(info(name).title, _unit(mean["mean"], info(name).unit), note)]


def _speed(summary: Mapping[str, Any]) -> list[Figure]:
    found = []
    if summary.get("images_per_s") is not None:
        world = summary.get("world_size")
        note = f"all {number(world)} ranks together" if isinstance(world, int) and world > 1 else ""
        found.append(Figure("Images per second", number(summary["images_per_s"]), note))
    if summary.get("sweep"):
        return found  # balance and wall time belong to the whole sweep, not to a point
    efficiency = mapping(summary.get("balance")).get("efficiency")
    if efficiency is not None and (summary.get("world_size") or 1) > 1:
        cause = mapping(summary.get("balance")).get("cause")
        found.append(Figure("Balance", percent(efficiency), str(cause or "busy fraction of all ranks' time")))
    found += _slow_ranks(mapping(summary.get("balance")))
    if summary.get("wall_s") is not None:
        found.append(Figure("Wall time", duration(summary["wall_s"]), "last session"))
    return found


def _slow_ranks(balance: Mapping[str, Any]) -> list[Figure]:
    """A figure for each rank whose device is slower than the others."""
    found = []
    for slow in sequence(balance.get("slow_ranks")):
        cost = f"; about {duration(slow['cost_s'])} longer for it" if slow.get("cost_s") is not None else ""
        note = f"{percent(slow['relative_speed'])} of the median speed of the other ranks{cost}"
        found.append(Figure("Slow rank", f"Rank {number(slow['rank'])}", note))
    return found


def _failed(count: int) -> str:
    return f"{number(count)} failed" if count else ""


def _unit(value: Any, unit: str) -> str:
    return f"{number(value)} {unit}".strip()


def _with(name: str, value: Any) -> str | None:
    return None if value is None else f"{name} {setting(value)}"


def _joined(*parts: Any) -> str:
    return " \u00b7 ".join(str(part) for part in parts if part is not None)
