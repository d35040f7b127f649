"""The figures at the top of a sweep's page. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report.run_facts import Figure, interval, mapping, sequence
from fluxexp.report.sweep_data import PointData, SweepData
from fluxexp.report.wording import duration, number


def headline(data: SweepData, quality_metric: str | None, answer: Mapping[str, Any]) -> list[Figure]:
    """The cheapest sufficient point with its cost and quality, then the number of points and images, and the time."""
    return [*_chosen(data, quality_metric, answer), *_totals(data.values)]


def warnings(values: Mapping[str, Any]) -> list[str]:
    """What makes the answer less certain, as sentences; empty for older sweeps."""
    return [str(warning) for warning in sequence(values.get("warnings"))]


def verdict_of(answer: Mapping[str, Any], number: int) -> str:
    """What the answer says of a point: `enough`, `not enough` or `undecided`; empty for older sweeps."""
    found = next((v for v in map(mapping, sequence(answer.get("verdicts"))) if v.get("point") == number), {})
    return str(found.get("verdict") or "")


def cost_interval(point: PointData) -> str:
    """The 95 % interval of the device time per image of a point; empty if it is not known."""
    low, high = point.cost_interval()
    return "" if low is None or high is None else f"{number(low)} to {number(high)} s"


def _chosen(data: SweepData, quality_metric: str | None, answer: Mapping[str, Any]) -> list[Figure]:
    cheapest, best = (_point(data, answer.get(name)) for name in ("cheapest", "best"))
    if cheapest is None:
        return []
    cost = cheapest.cost()
    figures = [Figure("Cheapest sufficient point", cheapest.label)]
    if cost is not None:
        figures.append(Figure("Device time per image", duration(cost), _cost_note(cheapest, best)))
    if quality_metric is not None and cheapest.mean(quality_metric).get("mean") is not None:
        mean = cheapest.mean(quality_metric)
        within = interval(mean)
        value = f"{number(mean['mean'])} {info(quality_metric).unit}".strip()
        figures.append(Figure(info(quality_metric).title, value, f"95 % interval: {within}" if within else ""))
    if cheapest.cost("joules_per_image") is not None:
        figures.append(Figure("Energy per image", f"{number(cheapest.cost('joules_per_image'))} J"))
    if cheapest.cost("usd_per_image") is not None:
        figures.append(Figure("Price per image", f"${number(cheapest.cost('usd_per_image'))}"))
    return figures


def _cost_note(cheapest: PointData, best: PointData | None) -> str:
    within, saving = cost_interval(cheapest), _saving(cheapest.cost() or 0.0, best)
    return "; ".join(part for part in (f"95 % interval: {within}" if within else "", saving) if part)


def _saving(cost: float, best: PointData | None) -> str:
    """How much cheaper `cost` is than the best point; empty if it is not cheaper, or if a cost is unknown."""
    other = None if best is None else best.cost()
    if not other or not cost or best is None or other <= cost:
        return ""
    return f"{number(other / cost, 2)} times cheaper than {best.label}"


def _totals(values: Mapping[str, Any]) -> list[Figure]:
    failed = values.get("num_failed")
    note = f"{number(failed)} failed" if failed else ""
    figures = [Figure("Points", number(values.get("num_points"))), Figure("Images", number(values.get("num_ok")), note)]
    if values.get("wall_s") is not None:
        figures.append(Figure("Wall time", duration(values["wall_s"]), "last session"))
    return figures


def _point(data: SweepData, index: Any) -> PointData | None:
    return data.points[index] if isinstance(index, int) and 0 <= index < len(data.points) else None
