"""Finalize on rank 0, after all ranks are done: summaries, sweep.json, W&B runs of points, reports, final messages."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fluxexp.address import Address
from fluxexp.compare import RunView, run_figures
from fluxexp.errors import FluxexpError, RankError, StorageError
from fluxexp.experiment.failure_reasons import reason_lines
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.session_messages import RankResult
from fluxexp.experiment.session_plan import PlannedRun, SessionPlan
from fluxexp.experiment.summary import summarize, table
from fluxexp.experiment.sweep import Sweep
from fluxexp.replay import replay
from fluxexp.scoring import ScoringReport
from fluxexp.telemetry import say

_WORTH_SAYING_S = 0.5
"""Below this idle time, a straggler is not worth a message."""


def summary_of(
    session_plan: SessionPlan, number: int, results: Mapping[int, RankResult], scoring: ScoringReport
) -> dict[str, Any]:
    """The summary of a run. If an earlier session made all images, its figures stay, except for scores."""
    run = session_plan.runs[number]
    earlier = run.plan.directory.reader.summary() if run.is_over else None
    return with_figures(run, earlier or summarize(session_plan, number, results), scoring)


def with_figures(run: PlannedRun, summary: Mapping[str, Any], scoring: ScoringReport) -> dict[str, Any]:
    """`summary` with scores and cost from the stored scores and records."""
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
    """Write summaries and sweep.json first, then create the W&B runs of a sweep's points, then write reports."""
    for run, summary in zip(session_plan.runs, summaries, strict=True):
        tracked = {} if run.is_over else {"tracking": overall["tracking"]}
        run.plan.directory.writer.write_summary({**summary, **tracked})
    if sweep is not None:
        sweep.write(_views(session_plan), overrides, outcomes, overall)
        _track_points(sweep, session_plan, summaries, overall["tracking"])
    write_reports(session_plan)
    say(f"results in {session_plan.directory.address}")


def finalize_unchanged(
    sweep: Sweep | None,
    session_plan: SessionPlan,
    overrides: Sequence[Sequence[str]],
    outcomes: Sequence[Outcome],
    summaries: Sequence[Mapping[str, Any]],
    *,
    changed: bool,
) -> None:
    """Finalize a session that had nothing to make. Rewrites summaries and reports only if scores `changed`."""
    if changed:
        for run, summary in zip(session_plan.runs, summaries, strict=True):
            run.plan.directory.writer.write_summary(summary)
    if sweep is not None:
        sweep.write(_views(session_plan), overrides, outcomes, None)
    if changed:
        write_reports(session_plan)
    for run in session_plan.runs:
        say(f"results in {run.plan.directory.address}")


def write_reports(session_plan: SessionPlan) -> None:
    """Write the HTML report of the run or sweep, and a run's contact sheet. A failure here stops nothing else."""
    if not session_plan.runs[0].plan.config.report.html:
        return
    from fluxexp.report import write_contact_sheet, write_report  # slow to import

    runs = [run.plan.directory for run in session_plan.runs]

    try:
        say(f"report     {write_report(session_plan.directory.address, runs)}")
        if session_plan.sweep is None:
            with suppress(StorageError):  # the run has no image
                write_contact_sheet(runs[0])
    except FluxexpError as error:
        say(f"no report: {error}", urgent=True)
    except Exception:
        traceback.print_exc()  # unexpected: a developer needs the traceback
        say("no report; run `python -m fluxexp.report` to try again", urgent=True)


def _views(session_plan: SessionPlan) -> Mapping[Address, RunView]:
    """Runs with their scores, by address."""
    return {run.plan.directory.address: RunView.read(run.plan) for run in session_plan.runs}


def _track_points(
    sweep: Sweep, session_plan: SessionPlan, summaries: Sequence[Mapping[str, Any]], tracking: Mapping[str, Any]
) -> None:
    """Create a W&B run for each point from its files."""
    new = [(run.plan, s) for run, s in zip(session_plan.runs, summaries, strict=True) if not run.is_over]
    if not new or tracking["mode"] in (None, "disabled"):  # None: W&B failed, and `say_results` printed why
        return
    directories = [plan.directory for plan, _ in new]
    reports = replay(directories, new[0][0].config.tracking, sweep=sweep.directory.name)
    for (plan, summary), report in zip(new, reports, strict=True):
        plan.directory.writer.write_summary({**summary, "tracking": asdict(report)})


def say_results(summary: Mapping[str, Any], tracking: Mapping[str, Any], session_plan: SessionPlan) -> None:
    """Print the table of ranks and the result of the session."""
    rate = summary["images_per_s"]
    say("")
    say(table(summary))
    say(
        f"{summary['status']}: {summary['num_ok']} of {summary['num_tasks']} images, {summary['num_failed']} failed, "
        f"{summary['wall_s']:.1f} s" + (f", {rate:.2f} images/s" if rate else "")
    )
    for text, count in summary.get("notes", {}).items():
        say(f"note       {count} images: {text}")
    for line in reason_lines(summary):
        say(line)
    cause = summary["balance"]["cause"]
    if cause and max(rank["idle_s"] for rank in summary["ranks"]) > _WORTH_SAYING_S:
        say(f"rank {summary['balance']['straggler']} took longest: {cause}")
    for rank in summary["ranks"]:
        for what, reason in rank["lost_telemetry"].items():
            say(f"rank {rank['rank']}: {what} are incomplete: {reason}", urgent=True)
    if tracking["error"]:
        say(f"W&B: {tracking['error']}")
    if tracking["directory"]:
        directory = str(tracking["directory"])
        place = directory if directory.startswith("/") else f"{session_plan.directory.address}/{directory}"
        say(f"W&B run, {tracking['mode']}: {place}")


def say_cut_prompts(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Print how many prompts T5 did not read to their end. CLIP's low limit is part of FLUX, so it is not mentioned."""
    known = [cut for summary in summaries if (cut := summary.get("cut_prompts"))]
    num_cut = sum(cut["num_t5"] for cut in known)
    if num_cut:
        most = max(cut["most_t5_tokens"] for cut in known)
        say(
            f"note       the prompts of {num_cut} images are too long for T5, and up to {most} tokens at their end "
            "had no effect: shorten them, or raise sampling.max_sequence_length if it is below 512"
        )


def raise_rank_errors(
    results: Mapping[int, RankResult], summaries: Sequence[Mapping[str, Any]], overall: Mapping[str, Any]
) -> None:
    """Print the errors of ranks and runs.

    Raises:
        RankError: a rank failed, and the other ranks could not do its work.
    """
    errors = [f"rank {rank}: {result.error}" for rank, result in sorted(results.items()) if result.error]
    of_ranks = {result.error for result in results.values()}
    of_runs = {rank["error"] for summary in summaries for rank in summary["ranks"] if rank["error"]}
    for error in sorted(of_runs - of_ranks):
        say(error, urgent=True)
    if errors and overall["status"] == "incomplete":
        raise RankError("\n".join(("not all ranks finished; run the same command again to continue", *errors)))
    for error in errors:
        say(f"{error}\n    (the other ranks did its work)", urgent=True)
