"""Rows of a sweep's tables: its points, and comparisons of two points on the same samples and noise. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report.run_facts import interval, mapping, sequence
from fluxexp.report.sweep_data import PointData, SweepData
from fluxexp.report.sweep_facts import answer_points, cost_interval, verdict_text
from fluxexp.report.wording import DASH, duration, number, percent


@dataclass(frozen=True, slots=True)
class PointRow:
    """A row of the table of points."""

    number: int
    label: str
    href: str | None
    status: str
    images: str
    quality: str
    interval: str
    cost: str
    cost_interval: str
    joules: str
    usd: str
    verdict: str
    """What the answer says of the point; empty if it says nothing."""
    notes: str
    """`answer`, `best` and `Pareto front`, as far as they apply; comma-separated."""
    is_chosen: bool
    """Whether it is an answer: the cheapest sufficient point, of all points or of those with one reference."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """A row of the table of comparisons: one metric of one comparison."""

    point: str
    baseline: str
    metric: str
    difference: str
    interval: str
    win_rate: str
    num_ties: str
    num_pairs: str
    verdict: str
    """`better` or `worse` if the interval excludes 0, else empty."""
    is_quality_metric: bool


def point_rows(data: SweepData, quality_metric: str | None, answer: Mapping[str, Any]) -> list[PointRow]:
    """A row per point, in the order of the axes."""
    return [_point_row(point, quality_metric, answer) for point in data.in_order()]


def comparison_rows(data: SweepData, quality_metric: str | None) -> list[PairRow]:
    """A row per metric of each comparison. In each comparison the quality metric comes first."""
    rows = []
    for comparison in map(mapping, sequence(data.values.get("comparisons"))):
        point, baseline = (_label(data, comparison.get(side)) for side in ("point", "baseline"))
        metrics = mapping(comparison.get("metrics"))
        for name in sorted(metrics, key=lambda name: name != quality_metric):
            rows.append(_pair_row(point, baseline, name, mapping(metrics[name]), name == quality_metric))
    return rows


def verdict(metric: str, low: Any, high: Any) -> str:
    """`better` or `worse` if the interval from `low` to `high` of a difference excludes 0.

    Empty if the interval includes 0 or is unknown, or if for this metric neither direction is better.
    """
    higher = info(metric).higher_is_better
    if low is None or high is None or higher is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == higher else "worse"


def _point_row(point: PointData, quality_metric: str | None, answer: Mapping[str, Any]) -> PointRow:
    values, mean = point.values, point.mean(quality_metric)
    notes = [
        note
        for note, holds in (
            ("answer", point.number in answer_points(answer)),
            ("best", answer.get("best") == point.number),
            ("Pareto front", values.get("is_pareto")),
        )
        if holds
    ]
    return PointRow(
        number=point.number,
        label=point.label,
        href=point.href,
        status=str(values.get("status") or DASH).replace("_", " "),
        images=f"{number(values.get('num_ok'))} of {number(values.get('num_tasks'))}",
        quality=number(mean.get("mean")),
        interval=interval(mean) or DASH,
        cost=duration(point.cost()),
        cost_interval=cost_interval(point) or DASH,
        joules=number(point.cost("joules_per_image")),
        usd=number(point.cost("usd_per_image")),
        verdict=verdict_text(answer, point.number) or DASH,
        notes=", ".join(notes),
        is_chosen=point.number in answer_points(answer),
    )


def _pair_row(point: str, baseline: str, name: str, values: Mapping[str, Any], is_quality_metric: bool) -> PairRow:
    metric, difference = info(name), values.get("difference")
    sign = "+" if isinstance(difference, int | float) and difference > 0 else ""
    return PairRow(
        point=point,
        baseline=baseline,
        metric=f"{metric.title} ({metric.unit})" if metric.unit else metric.title,
        difference=f"{sign}{number(difference)}",
        interval=interval(values) or DASH,
        win_rate=percent(values.get("win_rate")),
        num_ties=number(values.get("num_ties")),
        num_pairs=number(values.get("num_pairs")),
        verdict=verdict(name, values.get("low"), values.get("high")),
        is_quality_metric=is_quality_metric,
    )


def _label(data: SweepData, index: Any) -> str:
    return data.points[index].label if isinstance(index, int) and 0 <= index < len(data.points) else DASH
