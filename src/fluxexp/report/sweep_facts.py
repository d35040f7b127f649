"""The headline figures of a sweep. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report.run_facts import Figure, interval
from fluxexp.report.sweep_data import PointData, SweepData
from fluxexp.report.wording import duration, number


def headline(data: SweepData, judge: str | None, answer: Mapping[str, Any]) -> list[Figure]:
    """The setting that is enough with its cost and quality, then how much was made and how long it took."""
    return [*_chosen(data, judge, answer), *_made(data.values)]


def _chosen(data: SweepData, judge: str | None, answer: Mapping[str, Any]) -> list[Figure]:
    cheapest, best = (_point(data, answer.get(name)) for name in ("cheapest", "best"))
    if cheapest is None:
        return []
    cost = cheapest.cost()
    figures = [Figure("Enough", cheapest.label)]
    if cost is not None:
        figures.append(Figure("Device time an image", duration(cost), _times(cost, best)))
    if judge is not None and cheapest.mean(judge).get("mean") is not None:
        mean = cheapest.mean(judge)
        within = interval(mean)
        value = f"{number(mean['mean'])} {info(judge).unit}".strip()
        figures.append(Figure(info(judge).title, value, f"95 %: {within}" if within else ""))
    if cheapest.cost("joules_per_image") is not None:
        figures.append(Figure("Energy an image", f"{number(cheapest.cost('joules_per_image'))} J"))
    if cheapest.cost("usd_per_image") is not None:
        figures.append(Figure("Price an image", f"${number(cheapest.cost('usd_per_image'))}"))
    return figures


def _times(cost: float, best: PointData | None) -> str:
    other = None if best is None else best.cost()
    if not other or not cost or best is None or other <= cost:
        return ""
    return f"{number(other / cost, 2)} times cheaper than {best.label}"


def _made(values: Mapping[str, Any]) -> list[Figure]:
    failed = values.get("num_failed")
    note = f"{number(failed)} failed" if failed else ""
    figures = [Figure("Points", number(values.get("num_points"))), Figure("Images", number(values.get("num_ok")), note)]
    if values.get("wall_s") is not None:
        figures.append(Figure("Wall time", duration(values["wall_s"]), "of the last session"))
    return figures


def _point(data: SweepData, index: Any) -> PointData | None:
    return data.points[index] if isinstance(index, int) and 0 <= index < len(data.points) else None
