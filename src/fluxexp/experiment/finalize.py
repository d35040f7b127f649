"""What a session leaves when all ranks are done: summaries, sweep.json, W&B runs of points, reports, the last words."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fluxexp.compare import RunView, run_figures
from fluxexp.errors import FluxexpError, RankError, StorageError
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.session_plan import PlannedRun, SessionPlan
from fluxexp.experiment.summary import summarise, table
from fluxexp.experiment.sweep import Sweep
from fluxexp.replay import replay
from fluxexp.scoring import ScoringReport
from fluxexp.telemetry import say

RankResults = Mapping[int, Mapping[str, Any]]
"""What each rank said at its end, by rank."""
_WORTH_SAYING_S = 0.5
"""Below this the others hardly waited for a straggler."""


def summary_of(session_plan: SessionPlan, number: int, results: RankResults, scoring: ScoringReport) -> dict[str, Any]:
    """Of a run; where an earlier session made all of it, that one's figures stand, but for scores."""
    run = session_plan.runs[number]
    earlier = run.plan.directory.read_summary() if run.is_over else None
    return with_figures(run, earlier or summarise(session_plan, number, results), scoring)


def with_figures(run: PlannedRun, summary: Mapping[str, Any], scoring: ScoringReport) -> dict[str, Any]:
    """`summary` with scores and cost by what is on disk."""
    figures = run_figures(RunView.read(run.plan, summary))
    passed = {"scoring": scoring.to_json()} if scoring.num_scored or scoring.error or "scoring" not in summary else {}
    return {**summary, **figures, **passed}


def finalize(
    sweep: Sweep | None,
    session_plan: SessionPlan,
    overrides: Sequence[Sequence[str]],
    outcomes: Sequence[Outcome],
    summaries: Sequence[Mapping[str, Any]],
    overall: Mapping[str, Any],
) -> None:
    """Leave everything that can be read: first what is on disk, then W&B runs of a sweep's points, and reports."""
    for run, summary in zip(session_plan.runs, summaries, strict=True):
        tracked = {} if run.is_over else {"tracking": overall["tracking"]}
        run.plan.directory.write_summary({**summary, **tracked})
    if sweep is not None:
        sweep.write(_views(session_plan), overrides, outcomes, overall)
        _track_points(sweep, session_plan, summaries, overall["tracking"])
    write_reports(session_plan)
    say(f"results in {session_plan.directory}")


def finalize_unchanged(
    sweep: Sweep | None,
    session_plan: SessionPlan,
    overrides: Sequence[Sequence[str]],
    outcomes: Sequence[Outcome],
    summaries: Sequence[Mapping[str, Any]],
    *,
    changed: bool,
) -> None:
    """Where nothing was left to make: what is there stays as it is, but for scores that are `changed`."""
    if changed:
        for run, summary in zip(session_plan.runs, summaries, strict=True):
            run.plan.directory.write_summary(summary)
    if sweep is not None:
        sweep.write(_views(session_plan), overrides, outcomes, None)
    if changed:
        write_reports(session_plan)
    for run in session_plan.runs:
        say(f"results in {run.plan.directory.path}")


def write_reports(session_plan: SessionPlan) -> None:
    """The HTML report of the run or the sweep, and a run's contact sheet. Their failing costs nothing else."""
    if not session_plan.runs[0].plan.config.report.html:
        return
    from fluxexp.report import contact_sheet, write_report  # take a moment to import

    try:
        say(f"report     {write_report(session_plan.directory)}")
        if session_plan.sweep is None:
            with suppress(StorageError):  # there is no image to show
                contact_sheet(session_plan.directory).save(session_plan.directory / "contact_sheet.png", optimize=True)
    except FluxexpError as error:
        say(f"no report: {error}", urgent=True)
    except Exception:
        traceback.print_exc()  # not foreseen: whoever looks into it needs the place
        say("no report: `python -m fluxexp.report` tries again", urgent=True)


def _views(session_plan: SessionPlan) -> Mapping[Any, RunView]:
    """Runs with their scores, by directory."""
    return {run.plan.directory.path: RunView.read(run.plan) for run in session_plan.runs}


def _track_points(
    sweep: Sweep, session_plan: SessionPlan, summaries: Sequence[Mapping[str, Any]], tracking: Mapping[str, Any]
) -> None:
    """Give each point a W&B run of its own, made from what is on disk."""
    new = [(run.plan, s) for run, s in zip(session_plan.runs, summaries, strict=True) if not run.is_over]
    if not new or tracking["mode"] in (None, "disabled"):  # None: W&B is broken, and that is said
        return
    directories = [plan.directory.path for plan, _ in new]
    reports = replay(directories, new[0][0].config.tracking, group=sweep.directory.name)
    for (plan, summary), report in zip(new, reports, strict=True):
        plan.directory.write_summary({**summary, "tracking": asdict(report)})


def say_results(summary: Mapping[str, Any], tracking: Mapping[str, Any], session_plan: SessionPlan) -> None:
    """The ranks' table and what became of it all, on the terminal."""
    rate = summary["images_per_s"]
    say("")
    say(table(summary))
    say(
        f"{summary['status']}: {summary['num_ok']} of {summary['num_tasks']} images, {summary['num_failed']} failed, "
        f"{summary['wall_s']:.1f} s" + (f", {rate:.2f} images/s" if rate else "")
    )
    cause = summary["balance"]["cause"]
    if cause and max(rank["idle_s"] for rank in summary["ranks"]) > _WORTH_SAYING_S:
        say(f"rank {summary['balance']['straggler']} took longest: {cause}")
    if tracking["error"]:
        say(f"W&B: {tracking['error']}")
    if tracking["directory"]:
        say(f"W&B run, {tracking['mode']}: {session_plan.directory}/{tracking['directory']}")


def raise_rank_errors(results: RankResults, summaries: Sequence[Mapping[str, Any]], overall: Mapping[str, Any]) -> None:
    """Say what went wrong on ranks and in runs; it is an error where the others could not do a rank's work."""
    errors = [f"rank {rank}: {result['error']}" for rank, result in sorted(results.items()) if result["error"]]
    of_ranks = {result["error"] for result in results.values()}
    of_runs = {rank["error"] for summary in summaries for rank in summary["ranks"] if rank["error"]}
    for error in sorted(of_runs - of_ranks):
        say(error, urgent=True)
    if errors and overall["status"] == "incomplete":
        raise RankError("\n".join(("not all ranks finished; run the same command again to continue", *errors)))
    for error in errors:
        say(f"{error}\n    (the other ranks did its work)", urgent=True)
