"""Builds a sweep's page: the cheapest sufficient setting, plots and pictures that support it, and all points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report import run_facts as facts
from fluxexp.report import sweep_charts
from fluxexp.report.axes import Axes, axes_of
from fluxexp.report.comparisons import comparison_rows, point_rows
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.page import render
from fluxexp.report.pictures import Result, as_data, missing_pictures
from fluxexp.report.run_report import metric_data, time_charts
from fluxexp.report.selection import MAX_RESULTS
from fluxexp.report.sweep_data import PointData, SweepData
from fluxexp.report.sweep_facts import headline
from fluxexp.report.wording import number
from fluxexp.storage.result_files import sibling_link

_MAX_LINES = 16
"""Maximum number of metrics plotted over the first axis."""
_MAX_ROWS = 40
"""Maximum number of rows of the grid."""
_MAX_NOTES = 20
_DIFFERENT_DATASETS = (
    "The points have different datasets. This page shows the inputs and truths of the first dataset. "
    "The page of each point shows those of its own dataset."
)


def sweep_page(data: SweepData, samples: Samples, is_mixed: bool = False) -> str:
    """The HTML page of a sweep.

    Args:
        data: the sweep.
        samples: the samples of the points' dataset; if the datasets differ, of the first one.
        is_mixed: whether the points have different datasets.
    """
    judged_by = data.values.get("judged_by")
    quality_metric = judged_by if isinstance(judged_by, str) else None
    answer = facts.mapping(data.values.get("answer"))
    axes = axes_of([point.settings for point in data.points])
    columns = [point.number for point in data.by_cost() if point.run is not None]
    results, num_rows = grid_results(data, columns)
    shown = as_data(results, samples)
    names = _metric_names(data.points, quality_metric)
    charts = _charts(data, quality_metric, names, axes, answer)
    return render(
        "sweep.html.j2",
        {
            **shown,
            "metrics": metric_data(names),
            "quality_metric": quality_metric,
            "charts": charts,
            "points": [_point_data(point, quality_metric, answer) for point in data.points],
            "columns": columns,
            "reference": data.values.get("reference"),
            "axes": " \u00b7 ".join(axis.title.lower() for axis in _all(axes)),
        },
        title=data.name,
        status=str(data.values.get("status") or "unfinished"),
        answer=answer.get("sentence"),
        figures=headline(data, quality_metric, answer),
        quality_metric=None if quality_metric is None else info(quality_metric),
        tolerance=data.values.get("tolerance"),
        axes=axes,
        charts=charts,
        constant=[
            f"{info(name).title} {number(_means(data.points, name)[0])}" for name in _constant(data.points, names)
        ],
        lines=[name for name in charts if name.startswith("line-")],
        points=point_rows(data, quality_metric, answer),
        comparisons=comparison_rows(data, quality_metric),
        has_joules=any(point.cost("joules_per_image") is not None for point in data.points),
        has_usd=any(point.cost("usd_per_image") is not None for point in data.points),
        failures=facts.failures(r for p in data.points if p.run is not None for r in p.run.records.values()),
        rows=next((facts.configuration(point.run) for point in data.points if point.run is not None), []),
        command=facts.sweep_command([_typed(point) for point in data.points]),
        ranks=facts.rank_rows(data.values),
        num_rows=num_rows,
        num_rows_shown=len({(result.record.sample_key, result.record.variant) for result in results}),
        notes=_cut([*data.notes, *([_DIFFERENT_DATASETS] if is_mixed else []), *missing_pictures(shown)]),
    )


def grid_results(data: SweepData, columns: Sequence[int]) -> tuple[list[Result], int]:
    """The results that the grid shows, and the number of rows that a complete grid would have.

    A row is one image of one sample (sample key and image index). Samples that change most between points come first.
    The others follow in the order of the manifests.

    Args:
        data: the sweep.
        columns: numbers of the points, in the order of the columns. Each must have a run.
    """
    points = {point.number: point for point in data.points}
    rows: dict[tuple[str, int], list[Result]] = {}
    for column in columns:
        point = points[column]
        assert point.run is not None
        for record in point.run.records.values():
            scores = {**point.run.scores.get(record.key, {}), **data.distances.get(record.key, {})}
            result = Result(record, point.run.directory.reader, sibling_link(point.run.name), scores, column)
            rows.setdefault((record.sample_key, record.variant), []).append(result)
    changed = [
        (str(change.get("sample_key")), change.get("variant"))
        for comparison in facts.sequence(data.values.get("comparisons"))
        for change in facts.sequence(facts.mapping(comparison).get("changed_most"))[:4]
        if isinstance(change, Mapping)
    ]
    order = [*(row for row in dict.fromkeys(changed) if row in rows), *rows]
    limit = min(_MAX_ROWS, max(4, MAX_RESULTS // max(1, len(columns))))
    rows_shown = list(dict.fromkeys(order))[:limit]
    return [result for row in rows_shown for result in rows[row]], len(rows)


def _metric_names(points: Sequence[PointData], quality_metric: str | None) -> list[str]:
    """Names of the metrics and distances that have a mean, the quality metric first."""
    found = dict.fromkeys(
        name
        for point in points
        for part in ("quality", "distance")
        for name, mean in facts.mapping(point.values.get(part)).items()
        if facts.mapping(mean).get("mean") is not None
    )
    return sorted(found, key=lambda name: name != quality_metric)


def _charts(
    data: SweepData, quality_metric: str | None, names: Sequence[str], axes: Axes | None, answer: Mapping[str, Any]
) -> dict[str, Any]:
    charts: dict[str, Any] = {}
    if (
        quality_metric is not None
        and quality_metric in names
        and any(point.cost() is not None and point.mean(quality_metric) for point in data.points)
    ):
        labels = {number: data.points[number].label for number in _answer_points(data, answer)}
        charts["pareto"] = sweep_charts.pareto_chart(data.points, quality_metric, labels)
    if axes is not None:
        if axes.second is not None and quality_metric is not None and quality_metric in names:
            charts["heat"] = sweep_charts.heat_chart(data.points, quality_metric, axes)
        costs = ["cost"] if any(point.cost() is not None for point in data.points) else []
        constant = _constant(data.points, names)
        varied = [name for name in names if name not in constant]
        for name in [*varied[:1], *costs, *varied[1:_MAX_LINES]]:
            charts[f"line-{name}"] = sweep_charts.line_chart(data.points, name, axes)
    return charts | time_charts(data.logs)


def _constant(points: Sequence[PointData], names: Sequence[str]) -> list[str]:
    """Metrics whose mean is the same at every point. They get no plot."""
    return [name for name in names if len(points) > 1 and len(set(_means(points, name))) == 1]


def _means(points: Sequence[PointData], name: str) -> list[float]:
    return [mean for point in points if (mean := point.mean(name).get("mean")) is not None]


def _typed(point: PointData) -> list[str]:
    return [str(override) for override in facts.sequence(point.values.get("overrides"))]


def _answer_points(data: SweepData, answer: Mapping[str, Any]) -> list[int]:
    """Numbers of the points in the answer: the best and the cheapest sufficient one."""
    numbers = (answer.get("best"), answer.get("cheapest"))
    return [n for n in dict.fromkeys(numbers) if isinstance(n, int) and 0 <= n < len(data.points)]


def _point_data(point: PointData, quality_metric: str | None, answer: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's scripts need to know about a point."""
    mean, cost = point.mean(quality_metric).get("mean"), point.cost()
    return {
        "label": point.label,
        "href": point.href,
        "quality": None if mean is None or quality_metric is None else f"{info(quality_metric).title} {number(mean)}",
        "cost": None if cost is None else f"{number(cost)} s per image",
        "reference": point.values.get("reference"),
        "chosen": answer.get("cheapest") == point.number,
    }


def _all(axes: Axes | None) -> list[Any]:
    return [] if axes is None else [axis for axis in (axes.first, axes.second, *axes.others) if axis is not None]


def _cut(notes: Sequence[str]) -> list[str]:
    """The first `_MAX_NOTES` notes, and how many more there are."""
    more = len(notes) - _MAX_NOTES
    return [*notes[:_MAX_NOTES], *([f"Further notes, not shown: {more}."] if more > 0 else [])]
