"""Builds a sweep's page: the cheapest sufficient setting, plots and pictures that support it, and all points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report import run_facts as facts
from fluxexp.report import sweep_charts
from fluxexp.report.axes import Axes
from fluxexp.report.comparisons import PairRow, comparison_rows, point_rows
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.failed_tasks import failures
from fluxexp.report.page import render
from fluxexp.report.pictures import as_data, missing_pictures
from fluxexp.report.run_report import metric_data, time_charts
from fluxexp.report.sweep_data import PointData, SweepData
from fluxexp.report.sweep_facts import answer_points, groups, headline, sentences, verdict_of, warnings
from fluxexp.report.sweep_grid import axes_data, grid_results
from fluxexp.report.what_ran import configuration, point_settings, sweep_command, sweep_title
from fluxexp.report.wording import DASH, number

_MAX_LINES = 16
"""Maximum number of metrics plotted over the first axis."""
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
    quality_metric = _quality_metric(data)
    answer = facts.mapping(data.values.get("answer"))
    axes = data.axes()
    runs = [point.run for point in data.in_order() if point.run is not None]
    columns = [point.number for point in data.in_order() if point.run is not None]
    results, num_rows = grid_results(data, columns)
    shown = as_data(results, samples)
    names = _metric_names(data.points, quality_metric)
    charts = _charts(data, quality_metric, names, axes, answer)
    comparisons = comparison_rows(data, quality_metric)
    return render(
        "sweep.html.j2",
        {
            **shown,
            "metrics": metric_data(names),
            "quality_metric": quality_metric,
            "charts": charts,
            **_island_of_points(data, columns, quality_metric, axes, answer),
        },
        title=sweep_title(data, axes),
        directory=data.name,
        warnings=warnings(data.values),
        status=str(data.values.get("status") or "unfinished"),
        answer=sentences(answer),
        figures=headline(data, quality_metric, answer),
        quality_metric=None if quality_metric is None else info(quality_metric),
        tolerance=data.values.get("tolerance"),
        axes=axes,
        charts=charts,
        **_of_lines(data.points, names, charts),
        points=point_rows(data, quality_metric, answer),
        comparisons=comparisons,
        failures=failures(record for run in runs for record in run.records.values()),
        rows=configuration(runs, facts.mapping(data.values.get("tracking")).get("url")),
        command=sweep_command([_typed(point) for point in data.points]),
        settings=point_settings(data),
        ranks=facts.rank_rows(data.values),
        num_rows=num_rows,
        num_rows_shown=len({(result.record.sample_key, result.record.variant) for result in results}),
        **_columns_with_values(data, comparisons, answer),
        notes=_cut([*data.notes, *([_DIFFERENT_DATASETS] if is_mixed else []), *missing_pictures(shown)]),
    )


def _quality_metric(data: SweepData) -> str | None:
    judged_by = data.values.get("judged_by")
    return judged_by if isinstance(judged_by, str) else None


def _columns_with_values(data: SweepData, comparisons: Sequence[PairRow], answer: Mapping[str, Any]) -> dict[str, bool]:
    """Which optional columns and sentences the page shows."""
    points = data.points
    return {
        "has_answer": bool(answer_points(answer)),
        "has_cost_interval": any(point.cost_interval()[0] is not None for point in points),
        "has_status": any(point.values.get("status") != "complete" for point in points),
        "has_verdict": any(verdict_of(answer, point.number) for point in points),
        "has_ties": any(row.num_ties != DASH for row in comparisons),
        "has_joules": any(point.cost("joules_per_image") is not None for point in points),
        "has_usd": any(point.cost("usd_per_image") is not None for point in points),
    }


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
        charts["pareto"] = sweep_charts.pareto_chart(
            data.points, quality_metric, _labeled(answer), by_reference=bool(groups(answer))
        )
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


def _of_lines(points: Sequence[PointData], names: Sequence[str], charts: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the plots of metrics over the first axis, and the metrics that have none with their mean."""
    return {
        "lines": [name for name in charts if name.startswith("line-")],
        "constant": [f"{info(name).title} {number(_means(points, name)[0])}" for name in _constant(points, names)],
    }


def _means(points: Sequence[PointData], name: str) -> list[float]:
    return [mean for point in points if (mean := point.mean(name).get("mean")) is not None]


def _typed(point: PointData) -> list[str]:
    return [str(override) for override in facts.sequence(point.values.get("overrides"))]


def _labeled(answer: Mapping[str, Any]) -> set[int]:
    """Numbers of the points that have a label although they may not be on the Pareto front."""
    best = answer.get("best")
    return answer_points(answer) | ({best} if isinstance(best, int) else set())


def _island_of_points(
    data: SweepData, columns: Sequence[int], quality_metric: str | None, axes: Axes | None, answer: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page's scripts need to know about all points. `columns` has the numbers of the points with a run."""
    return {
        "points": [_point_data(point, quality_metric, axes, answer) for point in data.points],
        "columns": columns,
        "reference": data.values.get("reference"),
        "axes": axes_data(axes, [data.points[number] for number in columns]),
    }


def _point_data(
    point: PointData, quality_metric: str | None, axes: Axes | None, answer: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page's scripts need to know about a point. `place` has the index of its level on each axis."""
    mean, cost = point.mean(quality_metric).get("mean"), point.cost()
    return {
        "label": point.label,
        "place": [] if axes is None else list(axes.place(point.settings)),
        "href": point.href,
        "quality": None if mean is None or quality_metric is None else f"{info(quality_metric).title} {number(mean)}",
        "cost": None if cost is None else f"{number(cost)} s per image",
        "reference": point.values.get("reference"),
        "chosen": point.number in answer_points(answer),
    }


def _cut(notes: Sequence[str]) -> list[str]:
    """The first `_MAX_NOTES` notes, and how many more there are."""
    more = len(notes) - _MAX_NOTES
    return [*notes[:_MAX_NOTES], *([f"Further notes, not shown: {more}."] if more > 0 else [])]
