"""The run monitor: while all ranks work, rank 0 shows progress on the terminal and logs series and images to W&B.

Nothing here may end the session: an error of the display or of W&B is noted, and `tracking` in the summary has it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Self

from fluxexp.compare import points_table, varied_settings
from fluxexp.experiment.session_messages import Heartbeat
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.work_phases import WorkPhases
from fluxexp.parallel.liveness import Liveness
from fluxexp.records import Record
from fluxexp.telemetry import RankFigures, Windows, say
from fluxexp.tracking import (
    POINTS_TABLE,
    RANKS_COLUMNS,
    RANKS_TABLE,
    JobType,
    SampleRow,
    TrackingReport,
    open_tracker,
    ranks_table,
    run_name,
    run_title,
    series,
    summary_values,
    sweep_title,
)
from fluxexp.worker import PreparedSample, WorkOrder

_URGENT_S = 5.0
"""Longest wait for W&B after an interruption. A launcher kills the process 30 s after SIGTERM."""


class RunMonitor:
    """Shows and tracks a session. If its context ends with an error, the W&B run is closed as failed."""

    def __init__(self, session_plan: SessionPlan, liveness: Liveness) -> None:
        self._session_plan = session_plan
        self._liveness = liveness
        tracking = session_plan.runs[0].plan.config.tracking
        self._tracker = open_tracker(tracking)
        self._every_s = tracking.every_s
        self._phases: WorkPhases | None = None
        self._latest: Mapping[int, RankFigures] = {}
        self._windows = Windows(session_plan.start_s)
        self._logged_s = 0.0
        self._warned: set[int] = set()
        self._error: str | None = None
        self.report: dict[str, Any] = {}

    def __enter__(self) -> Self:
        session_plan = self._session_plan
        plan = session_plan.runs[0].plan
        job_type: JobType = "run" if session_plan.sweep is None else "sweep"
        if session_plan.sweep is None:
            config, group = asdict(plan.config) | {"fingerprint": plan.fingerprint}, plan.config.name
            title = run_title(plan.config.name, config)
        else:
            config = {"points": [run.plan.directory.name for run in session_plan.runs]}
            group = session_plan.directory.name
            title = sweep_title(plan.config.name, varied_settings([run.plan.config for run in session_plan.runs]))
        directory = session_plan.directory
        with self._harmless():
            self._tracker.start(
                config,
                directory.tracking_directory(),
                run_id=f"{directory.name}-{session_plan.session}",
                name=run_name(title),
                job_type=job_type,
                group=group,
                has_results=directory.is_local,
            )
        with self._harmless():
            self._phases = WorkPhases(session_plan)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close_phases()
        if kind is not None:
            self._finish(exit_code=1)

    def show_progress(self, heartbeats: Mapping[int, Heartbeat]) -> None:
        """Show the progress of all ranks, and log it to W&B every `tracking.every_s` seconds."""
        with self._harmless():
            self._show_progress(heartbeats)

    def _show_progress(self, heartbeats: Mapping[int, Heartbeat]) -> None:
        figures = self._latest = {rank: beat.figures for rank, beat in heartbeats.items()}
        if self._phases is not None:
            self._phases.show(figures)
        for text in self._tracker.news():
            say(f"W&B: {text}", urgent=True)
        now_s = time.time()
        if now_s - self._logged_s >= self._every_s:
            self._logged_s = now_s
            self._log(now_s)
        at_work = [rank for rank, values in figures.items() if values.finished_s is None]
        for rank, reason in self._liveness.lost(at_work).items():
            if rank not in self._warned:
                self._warned.add(rank)
                say(f"rank {rank} is lost: {reason}. Other ranks do its work.", urgent=True)

    def show_image(self, order: WorkOrder, record: Record, item: PreparedSample) -> None:
        """Add an image to the W&B table, as long as the table has room."""
        if self._tracker.wants_rows and record.file is not None:
            sample = item.sample
            row = SampleRow(
                key=record.key,
                sample=record.sample_key,
                input=sample.image,
                control=sample.control_image,
                reference=next(iter(sample.references), None),
                mask=sample.mask,
                result=partial(order.directory.reader.read_image, record.file),
                truth=sample.truth,
                prompt=record.prompt,
                seed=record.seed,
            )
            self._tracker.add_sample_row(row)

    def show_final_state(self, heartbeat_error: Exception | None) -> None:
        """Show and log the last state of all ranks."""
        self._close_phases()
        with self._harmless():
            self._log(time.time())
            rows = ranks_table(Windows(self._session_plan.start_s).next(self._latest, time.time()).ranks)
            if rows is not None:
                self._tracker.table(RANKS_TABLE, RANKS_COLUMNS, rows)
        if heartbeat_error is not None:
            say(
                f"heartbeats stopped, so progress and W&B series are incomplete: {heartbeat_error}",
                urgent=True,
            )

    def finish(self, summary: Mapping[str, Any], *, is_urgent: bool = False) -> None:
        """Log the summary to W&B and close the W&B run. `is_urgent`: the process may be killed soon."""
        with self._harmless():
            if "points" in summary:
                self._tracker.table(POINTS_TABLE, *points_table(summary))
            self._tracker.summary(summary_values(summary))
        self._finish(0 if summary["status"] != "incomplete" else 1, _URGENT_S if is_urgent else None)

    def _finish(self, exit_code: int, at_most_s: float | None = None) -> None:
        report = TrackingReport(mode=None)
        with self._harmless():
            report = self._tracker.finish(exit_code=exit_code, at_most_s=at_most_s)
        errors = [error for error in (report.error, self._error) if error]
        self.report = asdict(report) | {"error": "; ".join(errors) or None}

    def _close_phases(self) -> None:
        phases, self._phases = self._phases, None
        if phases is not None:
            with self._harmless():
                phases.close()

    @contextmanager
    def _harmless(self) -> Generator[None]:
        """Note the first error of the body. The session goes on without what it would have shown."""
        try:
            yield
        except Exception as error:
            self._error = self._error or f"{type(error).__name__}: {error}"

    def _log(self, now_s: float) -> None:
        if self._latest:
            window = self._windows.next(self._latest, now_s)
            values = window.session_values(self._session_plan.num_resumed, self._session_plan.num_tasks)
            wall_s = now_s - self._session_plan.start_s
            self._tracker.log(series(window.ranks, wall_s, values), wall_s)
