"""A run's plots as Vega-Lite specifications: the rank timeline, throughput over time, and distributions of scores.

assets/charts.js sets colors, fonts and backgrounds, because only the page knows whether it is in dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxexp.metrics.catalog import info
from fluxexp.report.chart_spec import spec
from fluxexp.report.rank_timeline import BACKGROUND, BUSY, KINDS, Bar, Throughput

_MAX_RANKS = 64
"""The timeline shows at most this many ranks."""
_COLORED_RANKS = 8
"""With more ranks, a plot shows thin lines and their median: the color-blind-safe palette has only eight colors."""
_KIND_COLORS = {
    "load": "#999999",
    "warm-up": "#F0E442",
    "condition": "#56B4E9",
    "denoise": "#0072B2",
    "decode": "#009E73",
    "wait": "#E69F00",
    "steal": "#CC79A7",
    "idle": "#D55E00",
    "other": "#777777",
    "read": "#8a9ba8",
    "write": "#8a9ba8",
}
"""Colors from the color-blind-safe palette of Okabe and Ito, and grays for the less important kinds."""
_TIME_TICKS = "ceil(width / 90)"
_WHOLE_NUMBERS = "datum.value % 1 ? '' : format(datum.value, ',.0f')"
"""Labels of an axis of counts. The tick step can be below 1 for small counts, and such ticks get no label."""
_OTHER_POINTS_COLOR = "rgba(128, 128, 128, 0.22)"
"""Color of the time that a rank spends on other points of the sweep."""


def timeline_chart(drawn: Sequence[Bar], gap: str) -> dict[str, Any]:
    """One row per rank: a bar per activity, and thin bars below for background threads.

    `gap` is the kind of the bars for intervals without a span (see `rank_timeline.bars`).
    """
    import altair as alt

    ranks = sorted({bar.rank for bar in drawn})[:_MAX_RANKS]
    rows: list[dict[str, Any]] = [
        {"rank": bar.rank, "kind": bar.kind, "start": round(bar.start_s, 3), "end": round(bar.end_s, 3)}
        for bar in drawn
        if bar.rank in ranks
    ]
    for row in rows:
        row |= {"seconds": round(row["end"] - row["start"], 3), "background": row["kind"] in BACKGROUND}
    found = {row["kind"] for row in rows}
    kinds = [kind for kind in dict.fromkeys((*KINDS, gap)) if kind in found]
    step = 26 if len(ranks) <= 16 else 14
    color = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=kinds, range=[_KIND_COLORS.get(kind, _OTHER_POINTS_COLOR) for kind in kinds]),
        legend=alt.Legend(title=None, orient="top", columns=alt.ExprRef("width < 560 ? 4 : 12"), symbolType="square"),
    )
    tooltip = [
        alt.Tooltip("rank:N", title="rank"),
        alt.Tooltip("kind:N", title="activity"),
        alt.Tooltip("seconds:Q", title="duration (s)", format=".3~f"),
        alt.Tooltip("start:Q", title="start (s)", format=".3~f"),
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "start:Q", title="Time since the start (s)", axis=alt.Axis(grid=False, tickCount=alt.ExprRef(_TIME_TICKS))
        ),
        x2="end:Q",
        y=alt.Y("rank:O", title="Rank", axis=alt.Axis(ticks=False, domain=False)),
        color=color,
        tooltip=tooltip,
    )
    front = base.transform_filter("!datum.background").mark_bar(height=step * 0.6)
    back = base.transform_filter("datum.background").mark_bar(height=3, yOffset=step * 0.42)
    layers = [front, back] if any(row["background"] for row in rows) else [front]
    chart = alt.layer(*layers).properties(width="container", height=step * len(ranks))
    return spec(chart, "Activity of each rank over time")


def throughput_chart(found: Sequence[Throughput], field: str) -> dict[str, Any]:
    """One field of `found` over time, a line per rank: `images_per_s` or `busy`."""
    import altair as alt

    rows = [
        {"rank": throughput.rank, "at": round(throughput.at_s, 3), "value": round(getattr(throughput, field), 4)}
        for throughput in found
    ]
    is_fraction = field == "busy"
    title = f"Busy fraction ({', '.join(BUSY)})" if is_fraction else "Images per second"
    axis = alt.Axis(format="%", tickCount=4) if is_fraction else alt.Axis(tickCount=4)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "at:Q", title="Time since the start (s)", axis=alt.Axis(grid=False, tickCount=alt.ExprRef(_TIME_TICKS))
        ),
        y=alt.Y("value:Q", title=None, axis=axis, scale=alt.Scale(domain=[0, 1]) if is_fraction else alt.Undefined),
        tooltip=[
            alt.Tooltip("rank:N", title="rank"),
            alt.Tooltip("value:Q", title=title.lower(), format=".0%" if is_fraction else ".3~f"),
        ],
    )
    if len({row["rank"] for row in rows}) <= _COLORED_RANKS:
        legend = alt.Legend(title="Rank", orient="top", symbolType="stroke")
        lines = base.mark_line(interpolate="step", strokeWidth=1.6).encode(color=alt.Color("rank:N", legend=legend))
        return spec(lines.properties(width="container", height=150), title)
    thin = base.mark_line(interpolate="step", strokeWidth=0.6, opacity=0.35).encode(detail="rank:N")
    median = base.mark_line(interpolate="step", strokeWidth=2.2).encode(y="median(value):Q", tooltip=alt.value(None))
    return spec(alt.layer(thin, median).properties(width="container", height=150), title)


def score_distribution_chart(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Histogram of `values` of the metric `name`, one value per image."""
    import altair as alt

    metric = info(name)
    unit = f" ({metric.unit})" if metric.unit else ""
    rows = [{"value": float(f"{value:.6g}")} for value in values]  # rounded to keep the page small
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("value:Q", bin=alt.Bin(maxbins=24), title=f"{metric.title}{unit}", axis=alt.Axis(grid=False)),
            y=alt.Y("count():Q", title="Images", axis=alt.Axis(tickCount=4, labelExpr=_WHOLE_NUMBERS)),
            tooltip=[alt.Tooltip("count():Q", title="images")],
        )
    )
    return spec(bars.properties(width="container", height=110), f"Distribution of {metric.title}")
