"""Sends finished runs to W&B, one after the other, through one child process."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from fluxexp.config.schema import TrackingConfig
from fluxexp.errors import StorageError
from fluxexp.replay.contents import Contents, LabelsOf, read_labels, run_contents, sweep_contents
from fluxexp.replay.rank_history import Moment
from fluxexp.replay.source import Source
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.telemetry import Windows
from fluxexp.tracking import (
    POINTS_TABLE,
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


def replay(
    directories: Sequence[RunDirectory | SweepDirectory], tracking: TrackingConfig, group: str | None = None
) -> list[TrackingReport]:
    """Create a new W&B run for each of `directories`. Returns one report for each, in their order.

    Args:
        directories: complete or incomplete runs, and sweeps as a whole. A sweep does not include its points.
        tracking: how to use W&B; the runs' own tracking configs do not matter.
        group: W&B's group of these runs; None for `tracking.group`, or else the group of a live run.

    Raises:
        StorageError: one of them is not the directory of a run; then nothing is replayed. A run with damaged files
            does not stop the others: its report contains the error.
    """
    sources = [Source.read(item) if isinstance(item, RunDirectory) else item for item in directories]
    # WANDB_NAME names one run. Several runs would all get it. A sweep and its points count as one.
    is_only = (sum(isinstance(item, SweepDirectory) for item in sources) or len(sources)) == 1
    # No work waits for a replay, so its queue is unlimited and nothing is dropped.
    tracker = open_tracker(replace(tracking, group=group or tracking.group), queue_limit=sys.maxsize)
    try:
        reports: list[TrackingReport] = []
        labels_of = cache(read_labels)  # a sweep can have thousands of points
        for source in sources:
            # After one timeout of the child process, do not wait for it again.
            reports.append(
                _replay(source, tracker, tracking, labels_of, is_only=is_only) if not tracker.was_stuck else _NOT_TRIED
            )
        return reports
    finally:
        tracker.close()


def _replay(
    source: Source | SweepDirectory,
    tracker: AnyTracker,
    tracking: TrackingConfig,
    labels_of: LabelsOf,
    *,
    is_only: bool,
) -> TrackingReport:
    directory = source if isinstance(source, SweepDirectory) else source.directory
    try:
        if isinstance(source, SweepDirectory):
            contents = sweep_contents(source, tracking)
        else:
            contents = run_contents(source, tracking, labels_of)
    except (StorageError, OSError) as error:
        return TrackingReport(mode=None, error=str(error))
    _start(directory, contents, tracker, is_only=is_only)
    for moment in contents.moments:
        values = moment.window.session_values(moment.resumed, contents.total)
        tracker.log(series(moment.window.ranks, moment.wall_s, values), moment.wall_s)
    if contents.moments:
        _log_ranks(tracker, contents.moments[-1])
    if tracker.wants_rows:
        for row in contents.rows:
            tracker.add_sample_row(row)
    if contents.points is not None:
        tracker.table(POINTS_TABLE, *contents.points)
    tracker.summary(contents.summary)
    return tracker.finish(exit_code=0 if contents.summary.get("status") != "incomplete" else 1, more=True)


def _start(directory: RunDirectory | SweepDirectory, contents: Contents, tracker: AnyTracker, *, is_only: bool) -> None:
    """Start a W&B run as a live session does, but with a new id: W&B does not accept an id twice."""
    now_s = time.time()
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_s))}{int(now_s % 1 * 1e6):06d}"
    tracker.start(
        contents.config,
        directory.tracking_directory(),
        run_id=f"{contents.run_id}-replay-{stamp}",
        name=run_name(contents.name) if is_only and contents.job_type != "point" else contents.name,
        job_type=contents.job_type,
        group=contents.group,
        has_results=directory.is_local,
    )


def _log_ranks(tracker: AnyTracker, last: Moment) -> None:
    """Log the table of ranks, with figures of the whole session."""
    rows = ranks_table(Windows(last.start_s).next(last.figures, last.now_s).ranks)
    if rows is not None:
        tracker.table(RANKS_TABLE, RANKS_COLUMNS, rows)
