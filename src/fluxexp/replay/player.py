"""Sends finished runs to W&B, one after the other, through one child process."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fluxexp.config.schema import TrackingConfig
from fluxexp.errors import StorageError
from fluxexp.replay.rank_history import Moment, timeline
from fluxexp.replay.replayed_samples import sample_rows
from fluxexp.replay.source import Source
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.telemetry import idle_s, say, tracked_series
from fluxexp.tracking import (
    NEEDS_DIRECTORY,
    RANKS_COLUMNS,
    RANKS_TABLE,
    NullTracker,
    Tracker,
    TrackingReport,
    open_tracker,
    ranks_table,
    run_name,
    series,
)

_NOT_TRIED = TrackingReport(
    mode=None, error="not replayed, because W&B did not respond in time; run `python -m fluxexp.replay` again later"
)
AnyTracker = Tracker | NullTracker


@dataclass(frozen=True, slots=True)
class _Filing:
    """How the runs of one call are named and grouped."""

    sweep: str | None
    is_only: bool


def replay(
    directories: Sequence[RunDirectory], tracking: TrackingConfig, group: str | None = None, *, sweep: str | None = None
) -> list[TrackingReport]:
    """Create a new W&B run for each of `directories`. Returns one report for each, in their order.

    Args:
        directories: complete or incomplete runs.
        tracking: how to use W&B; the runs' own tracking configs do not matter.
        group: W&B's group of these runs; None for `tracking.group`, or else the group of a live run.
        sweep: name of the sweep whose points these runs are: their group, if nothing else says one.

    Raises:
        StorageError: one of them is not the directory of a run; then nothing is replayed. A run with damaged files
            does not stop the others: its report contains the error.
    """
    sources = [Source.read(directory) for directory in directories]
    # WANDB_NAME names one run. Several runs would all get it.
    filing = _Filing(sweep, is_only=len(sources) == 1 and sweep is None)
    # No work waits for a replay, so its queue is unlimited and nothing is dropped.
    tracker = open_tracker(replace(tracking, group=group or tracking.group), queue_limit=sys.maxsize)
    try:
        reports: list[TrackingReport] = []
        for source in sources:
            # After one timeout of the child process, do not wait for it again.
            reports.append(_replay(source, tracker, tracking, filing) if not tracker.was_stuck else _NOT_TRIED)
        return reports
    finally:
        tracker.close()


def _replay(source: Source, tracker: AnyTracker, tracking: TrackingConfig, filing: _Filing) -> TrackingReport:
    if not source.directory.is_local:
        return TrackingReport(mode=None, error=NEEDS_DIRECTORY)
    try:
        outcomes = source.directory.reader.outcomes()
        if damage := source.directory.reader.manifest().damage.sentence():
            say(f"fluxexp: {source.directory.address}: {damage}", urgent=True)
        summary = source.summary(outcomes)
        moments = list(timeline(source.directory.reader, tracking.every_s))
    except (StorageError, OSError) as error:
        return TrackingReport(mode=None, error=str(error))
    _start(source, tracker, filing)
    for moment in moments:
        _log(tracker, moment)
    if moments:
        _log_ranks(tracker, moments[-1])
    if tracker.wants_rows:
        for row in sample_rows(source, outcomes, tracking.images):
            tracker.add_sample_row(row)
    tracker.summary(summary)
    return tracker.finish(exit_code=0 if summary.get("status") != "incomplete" else 1, more=True)


def _start(source: Source, tracker: AnyTracker, filing: _Filing) -> None:
    """Start a W&B run as a live session does, but with a new id: W&B does not accept an id twice."""
    now_s = time.time()
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_s))}{int(now_s % 1 * 1e6):06d}"
    name = f"{source.name}-{source.fingerprint}"
    tracker.start(
        {**source.config, "fingerprint": source.fingerprint},
        source.directory.local_directory(),
        run_id=f"{name}-replay-{stamp}",
        name=run_name(name) if filing.is_only else name,
        group=filing.sweep or source.name,
    )


def _log(tracker: AnyTracker, moment: Moment) -> None:
    per_rank, imbalance = tracked_series(moment.figures)
    tracker.log(series(per_rank, moment.wall_s, imbalance, idle_s(moment.figures, moment.now_s)), moment.wall_s)


def _log_ranks(tracker: AnyTracker, last: Moment) -> None:
    rows = ranks_table(tracked_series(last.figures)[0])
    if rows is not None:
        tracker.table(RANKS_TABLE, RANKS_COLUMNS, rows)
