"""Scores an existing run or sweep without making images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from fluxexp.address import Address
from fluxexp.compare import PointView, RunView, references, run_figures, sweep_figures
from fluxexp.config.schema import MetricsConfig, NoMetricsConfig, ParallelismConfig
from fluxexp.data import Dataset
from fluxexp.errors import ConfigError, Problem, StorageError
from fluxexp.metrics.metric_set import require_metrics
from fluxexp.plan import Plan
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.scores import ScoreValues
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.telemetry import say


@dataclass(frozen=True, slots=True)
class Rescoring:
    """How to score."""

    parts: Mapping[str, Any]
    """Config groups that replace the same groups of the runs."""
    parallelism: ParallelismConfig


def score_again(address: Address, rescoring: Rescoring) -> bool:
    """Compute missing scores of the run or sweep at `address`, and update its summaries.

    All ranks call it. It changes neither records nor images.

    Returns:
        whether everything was scored without an error. Only rank 0 knows; the other ranks return True.

    Raises:
        ConfigError: there are no metrics, or their weights are missing.
        StorageError: `address` is neither a run nor a sweep, or another session uses it.
    """
    if "metrics" in rescoring.parts:
        _check(rescoring.parts["metrics"])
    directory = SweepDirectory(address)
    sweep = directory.reader.values()
    directories = [RunDirectory(address)] if sweep is None else [directory.run_of(point) for point in sweep["points"]]
    datasets: dict[str, Dataset] = {}  # points of a sweep share samples, which are then read once
    plans = {place: _plan(run, rescoring, datasets) for place, run in enumerate(directories) if run}
    if not plans:
        raise StorageError(f"{address}: no point of this sweep was run")
    _check(next(iter(plans.values())).config.metrics)
    from fluxexp.parallel.topology import join  # torch
    from fluxexp.scoring import score_runs

    topology = join(rescoring.parallelism)
    runs = list(plans.values())
    with ExitStack() as stack:
        if topology.is_main:
            for plan in runs:
                stack.enter_context(plan.directory.claimed())
        baselines = references([plan.config for plan in runs])
        report = score_runs(topology, runs, baselines, directory if sweep else None, range(topology.world_size))
        if not topology.is_main:
            return True
        say(f"scored     {report.num_scored} images, {report.num_errors} with errors, {report.wall_s:.1f} s")
        for name, reason in report.omitted.items():
            say(f"left out   {name}: {reason}")
        for plan in runs:
            _update_summary(plan, report.to_json())
        if sweep is not None:
            _update_sweep(directory, sweep, plans, directory.reader.scores())
        say(f"scores in  {address}")
    return report.error is None and not report.num_errors


def _plan(run: RunDirectory, rescoring: Rescoring, datasets: dict[str, Dataset]) -> Plan:
    plan = Plan.read(run, datasets)
    return replace(plan, config=replace(plan.config, **{**rescoring.parts, "parallelism": rescoring.parallelism}))


def _check(metrics: MetricsConfig) -> None:
    if isinstance(metrics, NoMetricsConfig):
        raise ConfigError(Problem("metrics", "computes no scores", "none", "use metrics=basic or metrics=full"))
    require_metrics(metrics)


def _update_summary(plan: Plan, scoring: Mapping[str, Any]) -> None:
    try:
        summary = plan.directory.reader.summary()
    except StorageError as error:
        say(f"note       {error}")
        return
    if summary is not None:  # an interrupted run has no summary yet
        view = RunView.read(plan, summary)
        plan.directory.writer.write_summary({**summary, **run_figures(view), "scoring": dict(scoring)})


def _update_sweep(
    directory: SweepDirectory,
    sweep: Mapping[str, Any],
    plans: Mapping[int, Plan],
    distances: ScoreValues,
) -> None:
    views: Sequence[PointView] = [
        PointView(RunView.read(plans[place]) if place in plans else None, distances)
        for place in range(len(sweep["points"]))
    ]
    figures = sweep_figures(views)
    points = [point | part for point, part in zip(sweep["points"], figures["points"], strict=True)]
    directory.write({**sweep, **figures, "points": points})
    for warning in figures["warnings"]:
        say(f"note       {warning}")
    if figures["answer"]:
        say(f"answer     {figures['answer']['sentence']}")
