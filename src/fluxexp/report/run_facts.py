"""What a run was and how it went, as rows of words and figures. Pure: from files' values to what templates print."""

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

MOST_FAILURES = 100
"""Listed by name."""
_BY_STAGE = ("condition", "denoise", "decode", "write", "wait", "steal", "load")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the headline row."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Tasks that failed with one error."""

    error: str
    count: int
    samples: Sequence[str]
    """The first of them."""


def status_of(data: RunData) -> str:
    """As summary.json says it; `unfinished` where there is none."""
    return str(data.summary.get("status") or "unfinished")


def headline(data: RunData, quality: str | None) -> list[Figure]:
    """What a run made, how good it is, how fast and at what cost, as far as that is known."""
    num_ok = sum(record.status == "ok" for record in data.records.values())
    num_failed = sum(record.status == "failed" for record in data.records.values())
    num_tasks = data.summary.get("num_tasks")
    asked = f"of {number(num_tasks)}" if isinstance(num_tasks, int) and num_tasks != num_ok else ""
    made = Figure("Images", number(num_ok), f"{asked}{', ' if asked and num_failed else ''}{_failed(num_failed)}")
    return [made, *_quality(data.summary, quality), *cost_figures(data.summary), *_speed(data.summary)]


def cost_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Time, energy and money of an image."""
    cost = mapping(summary.get("cost"))
    seconds, per_hour = cost.get("device_s_per_image"), cost.get("images_per_hour_per_device")
    note = f"{number(per_hour)} images per device and hour" if per_hour else ""
    found = [Figure("Device time an image", duration(seconds), note)] if seconds is not None else []
    if cost.get("joules_per_image") is not None:
        found.append(Figure("Energy an image", f"{number(cost['joules_per_image'])} J"))
    if cost.get("usd_per_image") is not None:
        found.append(Figure("Price an image", f"${number(cost['usd_per_image'])}"))
    return found


def interval(value: Mapping[str, Any]) -> str:
    """The interval of a mean, empty where there is none."""
    low, high = value.get("low"), value.get("high")
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def in_short(data: RunData) -> str:
    """A run's setting in a line."""
    get = data.setting
    names = (_with(name, get(f"sampling.{name}")) for name in ("steps", "guidance", "seed"))
    return _joined(get("model.name"), get("scheduler.name"), *names)


def what_ran(data: RunData) -> list[tuple[str, str]]:
    """Model, settings, data and machine."""
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
    """Which one, and what it left to compute; None without one."""
    name, computed = data.setting("optimization.step_cache.name"), data.summary.get("computed_steps_mean")
    return _joined(name, _with("full steps an image", computed)) if name else None


def command(overrides: Sequence[str], *, sweep: bool = False) -> str:
    """What makes the run again, to be typed."""
    words = ["accelerate", "launch", "-m", "fluxexp", *(["-m"] if sweep else []), *overrides]
    return " ".join(shlex.quote(word) for word in words)


def sweep_command(points: Sequence[Sequence[str]]) -> str | None:
    """What makes a sweep again whose points these overrides are; None if they are not all of a grid."""
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
    """A row a rank: what it made and where its seconds went."""
    rows = []
    for rank in sequence(summary.get("ranks")):
        if not isinstance(rank, Mapping):
            continue
        row = {
            "Rank": number(rank.get("rank")),
            "Device": str(rank.get("device") or DASH),
            "Images": number(rank.get("num_images")),
            "Taken over": number(rank.get("num_stolen")),
            "Failed": number(rank.get("num_failed")),
            "Images/s": number(rank.get("images_per_s")),
        }
        row |= {name.capitalize(): duration(rank.get(f"{name}_s")) for name in ("busy", "wait", "idle", "load")}
        row |= {"Utilisation": percent(rank.get("utilisation_mean"))}
        row |= {"SM activity": percent(rank.get("sm_activity_mean")), "Power, W": number(rank.get("power_mean_w"))}
        row |= {"Memory, GiB": number(rank.get("memory_peak_gib")), "Error": str(rank.get("error") or DASH)}
        rows.append(row)
    dull = {name for name in (rows[0] if rows else ()) if all(row[name] == DASH for row in rows)}
    return [{name: value for name, value in row.items() if name not in dull} for row in rows]


def failures(records: Iterable[Record]) -> list[FailureGroup]:
    """Failed tasks by their error, the most frequent first; at most `MOST_FAILURES` samples are named."""
    groups: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            groups.setdefault(str(record.error or "no reason given"), []).append(record.sample_key)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    num_listed = max(1, MOST_FAILURES // max(1, len(ordered)))
    return [FailureGroup(error, len(keys), keys[:num_listed]) for error, keys in ordered]


def score_rows(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a metric: its mean and interval, and how to read it."""
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
                "reading": "; ".join(part for part in (metric.description, direction) if part),
            }
        )
    return rows


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is an object, else an empty one: files of other versions say other things."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list | tuple) else ()


def _quality(summary: Mapping[str, Any], name: str | None) -> list[Figure]:
    mean = mapping(mapping(summary.get("scores")).get(name or ""))
    if name is None or mean.get("mean") is None:
        return []
    within = interval(mean)
    return [Figure(info(name).title, _unit(mean["mean"], info(name).unit), f"95 %: {within}" if within else "")]


def _speed(summary: Mapping[str, Any]) -> list[Figure]:
    found = []
    if summary.get("images_per_s") is not None:
        world = summary.get("world_size")
        note = f"all {number(world)} ranks together" if isinstance(world, int) and world > 1 else ""
        found.append(Figure("Images a second", number(summary["images_per_s"]), note))
    if summary.get("sweep"):
        return found  # how ranks were balanced, and how long they took, is the sweep's
    efficiency = mapping(summary.get("balance")).get("efficiency")
    if efficiency is not None and (summary.get("world_size") or 1) > 1:
        cause = mapping(summary.get("balance")).get("cause")
        found.append(Figure("Balance", percent(efficiency), str(cause or "of ranks' time spent working")))
    if summary.get("wall_s") is not None:
        found.append(Figure("Wall time", duration(summary["wall_s"]), "of the last session"))
    return found


def _failed(count: int) -> str:
    return f"{number(count)} failed" if count else ""


def _unit(value: Any, unit: str) -> str:
    return f"{number(value)} {unit}".strip()


def _with(name: str, value: Any) -> str | None:
    return None if value is None else f"{name} {setting(value)}"


def _joined(*parts: Any) -> str:
    return " \u00b7 ".join(str(part) for part in parts if part is not None)
