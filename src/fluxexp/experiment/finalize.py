"""Finalize on rank 0, after all ranks are done: summaries, sweep.json, W&B runs of points, reports, final messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from fluxexp.address import Address
from fluxexp.compare import RunView, run_figures
from fluxexp.errors import RankError
from fluxexp.experiment.derived_files import is_written, report_problem, write_reports
from fluxexp.experiment.failure_reasons import reason_lines
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.rank_table import table
from fluxexp.experiment.session_figures import with_sessions
from fluxexp.experiment.session_messages import RankResult
from fluxexp.experiment.session_plan import PlannedRun, SessionPlan
from fluxexp.experiment.session_stop import StopRequest, stop_figures
from fluxexp.experiment.summary import summarize
from fluxexp.experiment.sweep import Sweep
from fluxexp.replay import replay
from fluxexp.scoring import ScoringReport
from fluxexp.storage.result_files import SESSIONS, SUMMARY, SWEEP
from fluxexp.telemetry import say

_WORTH_SAYING_S = 0.5
"""Below this idle time, a straggler is not worth a message."""


def summary_of(
    session_plan: SessionPlan,
    number: int,
    results: Mapping[int, RankResult],
    scoring: ScoringReport,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """The summary of a run. If an earlier session made all images, its figures stay, except for scores.

    `stop` says why the session stopped before its end, if it did.
    """
    run = session_plan.runs[number]
    reader = run.plan.directory.reader
    if run.is_over and (earlier := reader.summary()):
        return with_figures(run, earlier, scoring)
    summary = summarize(session_plan, number, results)
    summary |= stop_figures(stop, {**summary, "scoring": scoring.to_json()})
    return with_figures(run, with_sessions(reader, session_plan.session, summary), scoring)


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
) -> bool:
    """Write summaries and sweep.json first, then create the W&B runs of a sweep's points, then write reports.

    Returns:
        whether all files were written. The same command writes those that are missing.
    """
    done = True
    for run, summary in zip(session_plan.runs, summaries, strict=True):
        tracked = {} if run.is_over else {"tracking": overall["tracking"]}
        if not run.is_over:
            session = summary["sessions"][-1]
            done &= is_written(partial(run.plan.directory.writer.append_session, session), SESSIONS)
        done &= _is_summary_written(run, {**summary, **tracked})
    if sweep is not None:
        done &= is_written(lambda: sweep.write(partial(_views, session_plan), overrides, outcomes, overall), SWEEP)
        done &= is_written(lambda: _track_points(session_plan, summaries, overall["tracking"]), "W&B runs")
    done &= write_reports(session_plan)
    _say_end(sweep, [str(session_plan.directory.address)], done=done)
    return done


def finalize_unchanged(
    sweep: Sweep | None,
    session_plan: SessionPlan,
    overrides: Sequence[Sequence[str]],
    outcomes: Sequence[Outcome],
    summaries: Sequence[Mapping[str, Any]],
    earlier: Sequence[Mapping[str, Any]],
) -> bool:
    """Finalize a session that had nothing to make. Writes what changed, is missing or is damaged.

    Args:
        sweep: the sweep; None for a single run.
        session_plan: plan of the session.
        overrides: what the user typed for each plan.
        outcomes: how each plan ended.
        summaries: of the runs, with the scores of now.
        earlier: of the runs, as the files have them.

    Returns:
        whether all files are written.
    """
    done = True
    for run, summary, before in zip(session_plan.runs, summaries, earlier, strict=True):
        if json.dumps(summary) != json.dumps(before):
            done &= _is_summary_written(run, summary)
    if sweep is not None:
        done &= is_written(lambda: sweep.write(partial(_views, session_plan), overrides, outcomes, None), SWEEP)
    if (problem := report_problem(session_plan)) is not None:
        say(f"note       {problem}: it is made again")
        done &= write_reports(session_plan)
    _say_end(sweep, [str(run.plan.directory.address) for run in session_plan.runs], done=done)
    return done


def _is_summary_written(run: PlannedRun, summary: Mapping[str, Any]) -> bool:
    return is_written(lambda: run.plan.directory.writer.write_summary(summary), SUMMARY)


def _say_end(sweep: Sweep | None, places: Sequence[str], *, done: bool) -> None:
    if not done:
        say("the images exist, but not all files about them; run the same command again to write them", urgent=True)
    if sweep is not None and (answer := sweep.answer()):
        say(f"answer     {answer}")
    for place in places:
        say(f"results in {place}")


def _views(session_plan: SessionPlan) -> Mapping[Address, RunView]:
    """Runs with their scores, by address."""
    return {run.plan.directory.address: RunView.read(run.plan) for run in session_plan.runs}


def compare_points(
    sweep: Sweep, session_plan: SessionPlan, overrides: Sequence[Sequence[str]], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """See `Sweep.compare`; empty if it fails, which is printed. The error occurs again when sweep.json is written."""
    compared: dict[str, Any] = {}
    is_written(
        lambda: compared.update(sweep.compare(_views(session_plan), overrides, outcomes)), "comparison of the points"
    )
    return compared


def _track_points(
    session_plan: SessionPlan, summaries: Sequence[Mapping[str, Any]], tracking: Mapping[str, Any]
) -> None:
    """Create a W&B run for each point from its files."""
    new = [(run.plan, s) for run, s in zip(session_plan.runs, summaries, strict=True) if not run.is_over]
    if not new or tracking["mode"] in (None, "disabled"):  # None: W&B failed, and `say_results` printed why
        return
    directories = [plan.directory for plan, _ in new]
    reports = replay(directories, new[0][0].config.tracking)
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


def say_stop(overall: Mapping[str, Any]) -> None:
    """Print why the session stopped before its end, if it did, and how to continue."""
    if overall["interrupted"]:
        say("interrupted: what was made is saved; run the same command again to continue", urgent=True)
    if overall["stopped"]:
        reasons = overall["failure_reasons"]
        reason = f"; most frequent reason: {reasons[0]['reason']}" if reasons else ""
        say(
            f"stopped: {overall['stopped']}{reason}\n    (run the same command again to continue, or set "
            "failures.max_failure_rate=null)",
            urgent=True,
        )


def say_cut_prompts(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Print how many prompts T5 did not read to their end. CLIP's low limit is part of FLUX, so it is not mentioned."""
    prompts = [cut for summary in summaries if (cut := summary.get("cut_prompts"))]
    negative = [cut for each in prompts if (cut := each.get("negative"))]
    for noun, known in (("prompts", prompts), ("negative prompts", negative)):
        if num_cut := sum(cut["num_t5"] for cut in known):
            most = max(cut["most_t5_tokens"] for cut in known)
            say(
                f"note       the {noun} of {num_cut} images are too long for T5, and up to {most} tokens at their end "
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
