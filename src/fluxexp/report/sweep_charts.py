"""A sweep's plots as Vega-Lite specifications: quality against cost, quality over two axes, each metric over one axis.

assets/charts.js sets colors, fonts and backgrounds. Each data row has the number of its `point`, so that a click on a
mark can open the images of this point.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report.axes import Axes
from fluxexp.report.chart_spec import spec
from fluxexp.report.sweep_data import PointData
from fluxexp.report.wording import setting, short

COST_TITLE = "Device time per image (s)"
LABELS = "labels"
"""Name of a layer of texts. The page moves them to where they cover no mark and no other text."""
_MIN_LOG_RATIO = 8
"""An axis is logarithmic if its largest value is at least this many times its smallest value."""
_HEAT_PX = 280
"""Target height of the heat map, in pixels."""


def pareto_chart(
    points: Sequence[PointData], metric: str, answer: Collection[int], *, by_reference: bool = False
) -> dict[str, Any]:
    """Quality against cost of each point, with confidence intervals of both.

    Points of the Pareto front are filled and connected by a line. With `by_reference`, the points of each reference
    have a front of their own. Points of a front and in the `answer` have labels, which the page places beside the
    marks (`placeLabels` in assets/charts.js).
    """
    import altair as alt

    rows = _pareto_rows(points, metric, answer, by_reference)
    scale = _scale([row["cost"] for row in rows])
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("cost:Q", title=COST_TITLE, scale=scale, axis=alt.Axis(grid=False, tickCount=5, format="~g")),
        y=alt.Y(
            "mean:Q",
            title=title(metric),
            scale=alt.Scale(zero=False, padding=26, nice=False),
            axis=alt.Axis(tickCount=5),
        ),
        tooltip=_tooltip(metric, cost=True),
    )
    bars = base.mark_rule(opacity=0.4).encode(y="low:Q", y2="high:Q").transform_filter("isValid(datum.low)")
    spans = base.mark_rule(opacity=0.4).encode(x="cost_low:Q", x2="cost_high:Q")
    spans = spans.transform_filter("isValid(datum.cost_low)")
    line = base.mark_line(strokeDash=[4, 3], style="soft-line", strokeWidth=1)
    line = line.encode(detail="group:N").transform_filter("datum.front")
    dominated = base.mark_point(size=70, filled=False, cursor="pointer").transform_filter("!datum.front")
    front = base.mark_point(size=110, filled=True, opacity=1, cursor="pointer").transform_filter("datum.front")
    marks = [bars] if _has_intervals(rows) else []
    marks += [spans] if any(row["cost_low"] is not None for row in rows) else []
    marks += [line, front] if any(row["front"] for row in rows) else []
    marks += [] if all(row["front"] for row in rows) else [dominated]
    labels = base.mark_text(style="ink", fontSize=11).encode(text="name:N").transform_filter("isValid(datum.name)")
    marks += [labels.properties(name=LABELS)] if any(row["name"] for row in rows) else []
    return spec(alt.layer(*marks).properties(width="container", height=300), f"{info(metric).title} against cost")


def heat_chart(points: Sequence[PointData], metric: str, axes: Axes) -> dict[str, Any]:
    """Heat map of a metric over the two axes. If other settings vary, a cell shows the mean over their points."""
    import altair as alt

    assert axes.second is not None
    cells: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for point in points:
        if point.mean(metric).get("mean") is not None:
            place = (point.settings.get(axes.first.name), point.settings.get(axes.second.name))
            cells.setdefault(place, []).append(_row(point, metric))
    rows = [
        {
            "x": setting(x),
            "y": setting(y),
            "mean": float(f"{sum(row['mean'] for row in found) / len(found):.6g}"),
            "points": len(found),
            "point": found[0]["point"],
        }
        for (x, y), found in cells.items()
    ]
    middle = (min(row["mean"] for row in rows) + max(row["mean"] for row in rows)) / 2
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "x:O",
            title=axes.first.title,
            sort=axes.first.levels,
            axis=alt.Axis(labelAngle=0, ticks=False, domain=False),
        ),
        y=alt.Y(
            "y:O", title=axes.second.title, sort=axes.second.levels[::-1], axis=alt.Axis(ticks=False, domain=False)
        ),
        tooltip=[
            alt.Tooltip("x:O", title=axes.first.title),
            alt.Tooltip("y:O", title=axes.second.title),
            alt.Tooltip("mean:Q", title=title(metric), format=".4~g"),
        ],
    )
    scale = alt.Scale(scheme="cividis", zero=False, reverse=info(metric).higher_is_better is False)
    color = alt.Color("mean:Q", scale=scale, legend=None)
    # The better half of the scale is bright and gets dark text; the worse half is dark and gets white text.
    is_dark = "datum.mean > " if info(metric).higher_is_better is False else "datum.mean < "
    text_color = alt.condition(f"{is_dark}{middle!r}", alt.value("#ffffff"), alt.value("#111111"))
    cell = base.mark_rect(cursor="pointer").encode(color=color)
    text = base.mark_text(fontSize=12).encode(text=alt.Text("mean:Q", format=".3~g"), color=text_color)
    levels = len(axes.second.levels)
    height = levels * max(32, min(80, _HEAT_PX // levels))
    return spec(alt.layer(cell, text).properties(width="container", height=height), f"{info(metric).title} by setting")


def line_chart(points: Sequence[PointData], metric: str, axes: Axes) -> dict[str, Any]:
    """A metric's mean and confidence interval over the first axis, with a color for each level of the second axis.

    If other settings vary, each combination of them has its own line. `metric` can be `cost`.
    """
    import altair as alt

    first, second = axes.first, axes.second
    rows = [row | {"x": value if first.is_number else setting(value)} for row, value in _along(points, metric, axes)]
    kind = "Q" if first.is_number else "O"
    values = [row["x"] for row in rows] if first.is_number else []
    ticks = {"values": sorted(set(values)), "format": "~g"} if values else {}
    axis: Any = {"grid": False, "labelAngle": 0, **ticks}
    x_scale = _scale(values) if values else alt.Undefined
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            f"x:{kind}", title=first.title, axis=axis, scale=x_scale, sort=alt.Undefined if values else first.levels
        ),
        tooltip=_tooltip(metric, has_interval=_has_intervals(rows)),
    )
    if second is not None:
        legend = alt.Legend(title=second.title, orient="top", symbolType="circle", columns=4)
        base = base.encode(color=alt.Color("series:N", sort=second.levels, legend=legend))
    y = alt.Y("mean:Q", title=title(metric), scale=alt.Scale(zero=False, padding=6), axis=alt.Axis(tickCount=4))
    band = base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q"), y2="high:Q").transform_filter("isValid(datum.low)")
    line = base.mark_line(strokeWidth=1.6).encode(y=y, detail="rest:N")
    dots = base.mark_point(size=46, filled=True, opacity=1, cursor="pointer").encode(y=y)
    layers = alt.layer(*([band] if _has_intervals(rows) else []), line, dots).properties(width="container", height=170)
    return spec(layers, f"{title(metric)} over {first.title}")


def title(metric: str) -> str:
    """A metric's title with its unit. `metric` can be `cost`."""
    if metric == "cost":
        return COST_TITLE
    known = info(metric)
    return f"{known.title} ({known.unit})" if known.unit else known.title


def _along(points: Sequence[PointData], metric: str, axes: Axes) -> list[tuple[dict[str, Any], Any]]:
    """A row per point that has the metric, together with the point's value of the first axis."""
    rows = []
    for point in points:
        row = _row(point, metric)
        if row["mean"] is None or axes.first.name not in point.settings:
            continue
        if axes.second is not None:
            row["series"] = setting(point.settings.get(axes.second.name))
        rest = {k: v for k, v in point.settings.items() if k not in axes.names}
        row["rest"] = " ".join(f"{short(name)} {setting(value)}" for name, value in rest.items())
        rows.append((row, point.settings[axes.first.name]))
    return rows


def _row(point: PointData, metric: str) -> dict[str, Any]:
    if metric == "cost":
        low, high = point.cost_interval()
        return {"point": point.number, "label": point.label, "mean": point.cost(), "low": low, "high": high}
    mean = point.mean(metric)
    return {"point": point.number, "label": point.label, **{name: mean.get(name) for name in ("mean", "low", "high")}}


def _pareto_rows(
    points: Sequence[PointData], metric: str, answer: Collection[int], by_reference: bool
) -> list[dict[str, Any]]:
    """A row per point that has the metric and a cost."""
    rows = []
    for point in points:
        row = _row(point, metric) | _cost_row(point)
        if row["cost"] is None or row["mean"] is None:
            continue
        row["front"] = bool(point.values.get("is_pareto"))
        row["answer"] = point.number in answer
        row["name"] = point.label if row["front"] or row["answer"] else None
        row["group"] = point.group() if by_reference else None
        rows.append(row)
    return rows


def _cost_row(point: PointData) -> dict[str, float | None]:
    low, high = point.cost_interval()
    return {"cost": point.cost(), "cost_low": low, "cost_high": high}


def _has_intervals(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["low"] is not None for row in rows)


def _scale(values: Sequence[float]) -> Any:
    """Scale of an axis with these values: logarithmic if they span a large range, else linear."""
    import altair as alt

    if values and min(values) > 0 and max(values) / min(values) >= _MIN_LOG_RATIO:
        return alt.Scale(type="log", base=2, nice=False, padding=14)
    return alt.Scale(zero=False, padding=14, nice=False)


def _tooltip(metric: str, *, cost: bool = False, has_interval: bool = False) -> list[Any]:
    import altair as alt

    shown = [alt.Tooltip("label:N", title="point"), alt.Tooltip("mean:Q", title=title(metric), format=".4~g")]
    if metric != "cost" or has_interval:
        shown += [alt.Tooltip(f"{end}:Q", title=f"95 % interval, {end}", format=".4~g") for end in ("low", "high")]
    if cost:
        shown.append(alt.Tooltip("cost:Q", title=COST_TITLE, format=".4~g"))
    return shown
