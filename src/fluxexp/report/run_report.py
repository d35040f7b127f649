"""Builds a run's page: its main figures, failures, the timeline of its ranks, a gallery of results, and its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fluxexp.metrics.catalog import default_quality_metric, info
from fluxexp.report import run_facts as facts
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.failed_tasks import failures
from fluxexp.report.page import render
from fluxexp.report.pictures import Result, as_data, missing_pictures
from fluxexp.report.rank_timeline import IDLE, RankLog, bars, sessions, throughputs
from fluxexp.report.run_charts import score_distribution_chart, throughput_chart, timeline_chart
from fluxexp.report.run_data import RunData
from fluxexp.report.selection import MAX_RESULTS, select
from fluxexp.report.what_ran import command, configuration, run_subtitle, run_title
from fluxexp.storage.result_files import IMAGES, REPORT, SHARDS, sibling_link
from fluxexp.storage.sweep_directory import SweepDirectory

_OTHER_POINTS = "other points"
"""On the page of a sweep's point: the kind of the intervals between the spans of this point."""
_MAX_DISTRIBUTIONS = 12
"""Number of metrics with a histogram."""


def run_page(data: RunData, samples: Samples, limit: int = MAX_RESULTS) -> str:
    """The HTML page of a run, with at most `limit` results."""
    quality_metric = choose_quality_metric(data)
    ordered = sorted(data.records.values(), key=lambda r: (samples.order.get(r.sample_key, 1 << 60), r.key))
    chosen = select(ordered, data.scores, quality_metric, limit)
    results = [Result(record, data.directory.reader, "", data.scores.get(record.key, {})) for record in chosen]
    shown = as_data(results, samples)
    names = metric_names(data.scores)
    charts = _charts(data, quality_metric, names)
    return render(
        "run.html.j2",
        {
            **shown,
            "metrics": metric_data(names),
            "quality_metric": quality_metric,
            "charts": charts,
            "ranks": sorted({r.rank for r in chosen}),
        },
        title=run_title(data),
        status=facts.status_of(data),
        figures=facts.headline(data, quality_metric),
        short=run_subtitle(data),
        rows=configuration([data], facts.mapping(data.summary.get("tracking")).get("url")),
        command=command(data.overrides),
        config=yaml.safe_dump(dict(data.config), sort_keys=False, allow_unicode=True),
        charts=charts,
        distributions=[name for name in charts if name.startswith("distribution-")],
        ranks=facts.rank_rows(data.summary),
        scores=facts.score_rows(facts.mapping(data.summary.get("scores"))),
        failures=failures(ordered),
        num_results=len(ordered),
        num_shown=len(chosen),
        image_folder=SHARDS if data.setting("output.shards") else IMAGES,
        notes=[*data.notes, *missing_pictures(shown)],
        sweep=_sweep_link(data),
    )


def choose_quality_metric(data: RunData) -> str | None:
    """The metric that ranks results: the one that the summary names, else the default for the available metrics."""
    named = data.summary.get("judged_by") or data.summary.get("quality")
    return named if isinstance(named, str) else default_quality_metric(metric_names(data.scores))


def metric_names(scores: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """All metrics that have a value for at least one image."""
    return list(
        dict.fromkeys(name for values in scores.values() for name, value in values.items() if value is not None)
    )


def metric_data(names: list[str]) -> list[dict[str, Any]]:
    """What the page's scripts need to know about metrics."""
    known = [info(name) for name in names]
    return [
        {
            "name": m.name,
            "title": m.title,
            "unit": m.unit,
            "higher_is_better": m.higher_is_better,
            "description": m.description,
        }
        for m in known
    ]


def time_charts(logs: Sequence[RankLog], gap: str = IDLE) -> dict[str, Any]:
    """The timeline, throughput and busy fraction of ranks by name; empty without events. `gap` is as in `bars`."""
    found = sessions(logs)
    drawn, speeds = bars(found, gap), throughputs(found)
    if not drawn:
        return {}
    charts = {"timeline": timeline_chart(drawn, gap)}
    if speeds:
        charts |= {"speed": throughput_chart(speeds, "images_per_s"), "busy": throughput_chart(speeds, "busy")}
    return charts


def _charts(data: RunData, quality_metric: str | None, names: list[str]) -> dict[str, Any]:
    charts = time_charts(data.logs, _OTHER_POINTS if data.summary.get("sweep") else IDLE)
    for name in sorted(names, key=lambda name: name != quality_metric)[:_MAX_DISTRIBUTIONS]:
        values = [value for scores in data.scores.values() if (value := scores.get(name)) is not None]
        if len(set(values)) > 1:
            charts[f"distribution-{name}"] = score_distribution_chart(name, values)
    return charts


def _sweep_link(data: RunData) -> str | None:
    """Relative URL from a point's page to the page of its sweep; None if the run is not a point of a sweep."""
    name = data.summary.get("sweep")
    sweep = data.directory.address.sibling(name) if isinstance(name, str) else None
    return sibling_link(sweep.name, REPORT) if sweep and SweepDirectory(sweep).reader.is_sweep() else None
