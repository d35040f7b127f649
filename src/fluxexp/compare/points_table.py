"""The points of a sweep as a table of plain values, and their names. Reads what sweep.json has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.compare.settings import label

_COUNTS = ("num_ok", "num_failed", "num_tasks")


def points_table(sweep: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: number, label, settings, means of metrics with their intervals, cost, and the verdicts.

    `sweep` has the keys of sweep.json (docs/run-directory.md). Unknown values are None.
    """
    points: Sequence[Mapping[str, Any]] = sweep.get("points") or ()
    answer: Mapping[str, Any] = sweep.get("answer") or {}
    means = [{**(point.get("distance") or {}), **(point.get("quality") or {})} for point in points]
    settings = list(dict.fromkeys(key for point in points for key in point.get("settings") or {}))
    metrics = list(dict.fromkeys(name for values in means for name in values))
    costs = list(dict.fromkeys(key for point in points for key in point.get("cost") or {}))
    columns = ["point", "label", *settings, *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))]
    columns += [*(f"cost.{key}" for key in costs), "is_pareto", "is_best", "is_cheapest", *_COUNTS, "directory"]
    rows = [
        [
            number,
            label(point.get("settings") or {}),
            *((point.get("settings") or {}).get(key) for key in settings),
            *(values.get(name, {}).get(part) for name in metrics for part in ("mean", "low", "high")),
            *((point.get("cost") or {}).get(key) for key in costs),
            point.get("is_pareto"),
            answer.get("best") == number,
            answer.get("cheapest") == number,
            *(point.get(key) for key in _COUNTS),
            point.get("directory"),
        ]
        for number, (point, values) in enumerate(zip(points, means, strict=True))
    ]
    return columns, rows


def point_labels(sweep: Mapping[str, Any]) -> dict[str, str]:
    """The label of each point by its directory. Points whose settings do not differ from the others are left out."""
    points: Sequence[Mapping[str, Any]] = sweep.get("points") or ()
    return {
        point["directory"]: label(point["settings"])
        for point in points
        if point.get("settings") and isinstance(point.get("directory"), str)
    }
