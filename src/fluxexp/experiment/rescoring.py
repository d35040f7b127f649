"""Scoring without making anything: of a run or a sweep that lies on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fluxexp.compare import PointView, RunView, references, run_figures, sweep_figures
from fluxexp.config.schema import MetricsConfig, NoMetricsConfig, ParallelismConfig
from fluxexp.errors import ConfigError, Problem, StorageError
from fluxexp.metrics.metric_set import require_metrics
from fluxexp.plan import Plan
from fluxexp.storage.atomic import write_atomically
from fluxexp.telemetry import say


@dataclass(frozen=True, slots=True)
class Rescoring:
    """What is asked for."""

    parts: Mapping[str, Any]
    """Groups of the config that take the place of the runs' own."""
    parallelism: ParallelismConfig


def score_again(path: Path, rescoring: Rescoring) -> bool:
    """Score what is not scored yet in the directory of a run or a sweep, and bring their figures up to date.

    All ranks call it. What is known of records and pictures stays as it is.

    Returns:
        whether all of it came to its end; known to rank 0.

    Raises:
        ConfigError: nothing to score by, or weights that are not there.
        StorageError: `path` is neither, or in use.
    """
    if "metrics" in rescoring.parts:
        _check(rescoring.parts["metrics"])
    sweep = _read_sweep(path)
    directories = [path] if sweep is None else [_point_directory(path, point) for point in sweep["points"]]
    plans = {place: _plan(directory, rescoring) for place, directory in enumerate(directories) if directory}
    if not plans:
        raise StorageError(f"{path}: no point of this sweep was run")
    _check(next(iter(plans.values())).config.metrics)
    from fluxexp.parallel.topology import join  # torch
    from fluxexp.scoring import read_distances, score_runs

    topology = join(rescoring.parallelism)
    runs = list(plans.values())
    with ExitStack() as stack:
        if topology.is_main:
            for plan in runs:
                stack.enter_context(plan.directory.claimed())
        baselines = references([plan.config for plan in runs])
        report = score_runs(topology, runs, baselines, path if sweep else None, range(topology.world_size))
        if not topology.is_main:
            return True
        say(f"scored     {report.num_scored} images, {report.num_errors} with errors, {report.wall_s:.1f} s")
        for name, reason in report.omitted.items():
            say(f"left out   {name}: {reason}")
        for plan in runs:
            _update_summary(plan, report.to_json())
        if sweep is not None:
            _update_sweep(path, sweep, plans, read_distances(path))
        say(f"scores in  {path}")
    return report.error is None and not report.num_errors


def _read_sweep(path: Path) -> dict[str, Any] | None:
    file = path / "sweep.json"
    try:
        sweep: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be read: {error}") from error
    return sweep


def _point_directory(sweep: Path, point: Mapping[str, Any]) -> Path | None:
    """None for a point that could not be run."""
    return None if point["status"] == "failed" else sweep.parent / point["directory"]


def _plan(directory: Path, rescoring: Rescoring) -> Plan:
    plan = Plan.read(directory)
    return replace(plan, config=replace(plan.config, **{**rescoring.parts, "parallelism": rescoring.parallelism}))


def _check(metrics: MetricsConfig) -> None:
    if isinstance(metrics, NoMetricsConfig):
        raise ConfigError(Problem("metrics", "leaves nothing to score by", "none", "say metrics=basic or metrics=full"))
    require_metrics(metrics)


def _update_summary(plan: Plan, scoring: Mapping[str, Any]) -> None:
    summary = plan.directory.read_summary()
    if summary is not None:  # a run that was cut off has none yet
        view = RunView.read(plan, summary)
        plan.directory.write_summary({**summary, **run_figures(view), "scoring": dict(scoring)})


def _update_sweep(
    path: Path,
    sweep: Mapping[str, Any],
    plans: Mapping[int, Plan],
    distances: Mapping[str, Mapping[str, float | None]],
) -> None:
    views: Sequence[PointView] = [
        PointView(RunView.read(plans[place]) if place in plans else None, distances)
        for place in range(len(sweep["points"]))
    ]
    figures = sweep_figures(views)
    points = [point | part for point, part in zip(sweep["points"], figures["points"], strict=True)]
    content = {**sweep, **figures, "points": points}
    write_atomically(path / "sweep.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if figures["answer"]:
        say(figures["answer"]["sentence"])
