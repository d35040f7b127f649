"""A run's page: what ran, its figures, what each rank did when, what failed, and a gallery of what was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fluxexp.metrics.catalog import default_quality_metric, info
from fluxexp.report import run_facts as facts
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.page import FILE_NAME, render
from fluxexp.report.pictures import Result, as_data, missing_pictures
from fluxexp.report.rank_timeline import IDLE, RankLog, bars, sessions, throughputs
from fluxexp.report.run_charts import score_distribution_chart, throughput_chart, timeline_chart
from fluxexp.report.run_data import RunData
from fluxexp.report.selection import MOST_RESULTS, select
from fluxexp.storage.sweep_directory import SweepDirectory

_ELSEWHERE = "other points"
"""What ranks of a sweep were at between the spans of one point."""
_SPREADS = 12


def run_page(data: RunData, samples: Samples, limit: int = MOST_RESULTS) -> str:
    """The page of a run, with at most `limit` results."""
    quality = judged_by(data.summary, data)
    ordered = sorted(data.records.values(), key=lambda r: (samples.order.get(r.sample_key, 1 << 60), r.key))
    chosen = select(ordered, data.scores, quality, limit)
    results = [Result(record, data.directory.reader, "", data.scores.get(record.key, {})) for record in chosen]
    shown = as_data(results, samples)
    names = metric_names(data.scores)
    charts = _charts(data, quality, names)
    return render(
        "run.html.j2",
        {
            **shown,
            "metrics": metric_data(names),
            "judge": quality,
            "charts": charts,
            "ranks": sorted({r.rank for r in chosen}),
        },
        title=data.name,
        status=facts.status_of(data),
        figures=facts.headline(data, quality),
        short=facts.in_short(data),
        rows=facts.what_ran(data),
        command=facts.command(data.overrides),
        config=yaml.safe_dump(dict(data.config), sort_keys=False, allow_unicode=True),
        charts=charts,
        distributions=[name for name in charts if name.startswith("distribution-")],
        ranks=facts.rank_rows(data.summary),
        scores=facts.score_rows(facts.mapping(data.summary.get("scores"))),
        failures=facts.failures(ordered),
        num_results=len(ordered),
        num_shown=len(chosen),
        notes=[*data.notes, *missing_pictures(shown)],
        sweep=_sweep_link(data),
    )


def judged_by(summary: Mapping[str, Any], data: RunData) -> str | None:
    """The metric by which results are judged."""
    asked = summary.get("judged_by") or summary.get("quality")
    return asked if isinstance(asked, str) else default_quality_metric(metric_names(data.scores))


def metric_names(scores: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """All metrics that say something about any image."""
    return list(
        dict.fromkeys(name for values in scores.values() for name, value in values.items() if value is not None)
    )


def metric_data(names: list[str]) -> list[dict[str, Any]]:
    """How scripts are to show metrics."""
    known = [info(name) for name in names]
    return [
        {"name": m.name, "title": m.title, "unit": m.unit, "higher": m.higher_is_better, "about": m.description}
        for m in known
    ]


def time_charts(logs: Sequence[RankLog], gap: str = IDLE) -> dict[str, Any]:
    """Plots of ranks over time; none without events."""
    found = sessions(logs)
    drawn, speeds = bars(found, gap), throughputs(found)
    if not drawn:
        return {}
    charts = {"timeline": timeline_chart(drawn, gap)}
    if speeds:
        charts |= {"speed": throughput_chart(speeds, "images_per_s"), "busy": throughput_chart(speeds, "busy")}
    return charts


def _charts(data: RunData, quality: str | None, names: list[str]) -> dict[str, Any]:
    charts = time_charts(data.logs, _ELSEWHERE if data.summary.get("sweep") else IDLE)
    for name in sorted(names, key=lambda name: name != quality)[:_SPREADS]:
        values = [value for scores in data.scores.values() if (value := scores.get(name)) is not None]
        if len(set(values)) > 1:
            charts[f"distribution-{name}"] = score_distribution_chart(name, values)
    return charts


def _sweep_link(data: RunData) -> str | None:
    """From the page to that of the sweep that the run is a point of."""
    sweep = data.summary.get("sweep")
    if not isinstance(sweep, str) or not SweepDirectory(data.path.parent / sweep).reader.is_sweep():
        return None
    return f"../{sweep}/{FILE_NAME}"
