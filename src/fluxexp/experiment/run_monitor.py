"""What rank 0 does for the whole run while all ranks work: progress on the terminal, series and pictures to W&B."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

from fluxexp.experiment.heartbeat import RankFigures, silent_ranks
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.records import Record
from fluxexp.telemetry import Progress, idle_s, say, tracked_series
from fluxexp.tracking import RANKS_COLUMNS, RANKS_TABLE, SampleRow, open_tracker, ranks_table, series, summary_values
from fluxexp.worker import PreparedSample, WorkOrder


class RunMonitor:
    """Shows and tracks a run. Leaving it on an error closes the W&B run as failed."""

    def __init__(self, session_plan: SessionPlan) -> None:
        self._agreement = session_plan
        tracking = session_plan.runs[0].plan.config.tracking
        self._tracker = open_tracker(tracking)
        self._every_s = tracking.every_s
        self._progress = Progress(
            session_plan.num_tasks,
            session_plan.num_resumed,
            sys.stdout or io.StringIO(),
            sys.stdout is not None and sys.stdout.isatty(),
        )
        self._latest: Mapping[int, RankFigures] = {}
        self._logged_s = 0.0
        self._warned: set[int] = set()
        self.report: dict[str, Any] = {}

    def __enter__(self) -> Self:
        session_plan = self._agreement
        plan = session_plan.runs[0].plan
        name = session_plan.directory.name
        if session_plan.sweep is None:
            config, group = asdict(plan.config) | {"fingerprint": plan.fingerprint}, plan.config.name
        else:
            config, group = {"points": [run.plan.directory.path.name for run in session_plan.runs]}, name
        self._tracker.start(
            config, session_plan.directory, run_id=f"{name}-{session_plan.session}", name=name, group=group
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._progress.close()
        if kind is not None:
            self.report = asdict(self._tracker.finish(exit_code=1))

    def beat(self, figures: Mapping[int, RankFigures]) -> None:
        """Show where all ranks stand, and tell W&B every `tracking.every_s` seconds."""
        self._latest = figures
        working = [values for values in figures.values() if values["finished_s"] is None]
        rates = [values["images_per_s"] for values in working if values["images_per_s"] is not None]
        self._progress.update(
            sum(values["num_images"] for values in figures.values()),
            sum(values["num_failed"] for values in figures.values()),
            sum(rates) if rates else None,
        )
        now_s = time.time()
        if now_s - self._logged_s >= self._every_s:
            self._logged_s = now_s
            self._log(now_s)
        for rank in set(silent_ranks(figures, now_s)) - self._warned:
            self._warned.add(rank)
            say(f"\nrank {rank} has not been heard of for a minute", urgent=True)

    def show_image(self, order: WorkOrder, record: Record, item: PreparedSample) -> None:
        """Add a finished image to W&B's table, while it has room."""
        if self._tracker.wants_rows and record.file is not None:
            sample = item.sample
            row = SampleRow(
                key=record.key,
                input=sample.image,
                mask=sample.mask,
                result=order.directory.path / record.file,
                truth=sample.truth,
                prompt=record.prompt,
                seed=record.seed,
            )
            self._tracker.add_sample_row(row)

    def final(self, pulse_error: Exception | None) -> None:
        """Show and log the last state."""
        self._progress.close()
        self._log(time.time())
        rows = ranks_table(tracked_series(self._latest)[0])
        if rows is not None:
            self._tracker.table(RANKS_TABLE, RANKS_COLUMNS, rows)
        if pulse_error is not None:
            say(f"progress and W&B series stopped early: {pulse_error}", urgent=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Give W&B the summary, and close its run."""
        self._tracker.summary(summary_values(summary))
        self.report = asdict(self._tracker.finish(exit_code=0 if summary["status"] != "incomplete" else 1))

    def _log(self, now_s: float) -> None:
        per_rank, imbalance = tracked_series(self._latest)
        if per_rank:
            wall_s = now_s - self._agreement.start_s
            self._tracker.log(series(per_rank, wall_s, imbalance, idle_s(self._latest, now_s)), wall_s)
