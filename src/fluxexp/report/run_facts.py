"""Converts the values in a run's files to the texts, figures and table rows that the templates show. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report.run_data import RunData
from fluxexp.report.wording import DASH, duration, number, percent


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure at the top of the page."""

    label: str
    value: str
    note: str = ""


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
