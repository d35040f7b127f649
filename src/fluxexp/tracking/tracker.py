"""The rank's side of tracking: it sends messages to the child process and reports the result at the end.

It does not import wandb. Calls return at once, except `finish` and `close`, which wait for a limited time. Failures are
counted and reported, never raised.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxexp.config.schema import TrackingConfig
from fluxexp.tracking.child_link import ChildLink, message
from fluxexp.tracking.line_pipe import Line
from fluxexp.tracking.null_tracker import NullTracker
from fluxexp.tracking.run_names import JobType
from fluxexp.tracking.sample_row import SampleRow
from fluxexp.tracking.server_watch import CHECK_S
from fluxexp.tracking.tracking_report import TrackingReport
from fluxexp.tracking.wandb_environment import WandbSettings

CHILD_COMMAND = (sys.executable, "-m", "fluxexp.tracking.child")
QUEUE_LIMIT = 1000
INIT_TIMEOUT_S = 10.0
"""How long the child waits for an answer of the W&B server. After that, it logs the run offline."""
START_S = 45.0
"""A child that has not opened its run after this time is news for the user."""
_MAX_ERRORS = 5


def open_tracker(
    tracking: TrackingConfig,
    environ: Mapping[str, str] = os.environ,
    *,
    queue_limit: int = QUEUE_LIMIT,
) -> Tracker | NullTracker:
    """Make the tracker that `tracking` asks for. It is not started.

    If `tracking.mode` is None, `WANDB_MODE` decides, then W&B's settings, then whether there are credentials for its
    server (environment, netrc or settings). In the child, wandb looks up the settings and the credentials.
    """
    if (tracking.mode or environ.get("WANDB_MODE")) == "disabled":
        return NullTracker()
    return Tracker(tracking, queue_limit=queue_limit)


class Tracker:
    """A W&B run in a child process. Call `start` first and `finish` last; other calls may come from several threads.

    After `finish(more=True)`, `start` may be called again, for another run in the same child process; call `close` at
    the end. If this process dies, the child sees the end of its input and closes the W&B run as failed.
    """

    def __init__(
        self,
        tracking: TrackingConfig,
        *,
        command: Sequence[str] = CHILD_COMMAND,
        init_timeout_s: float = INIT_TIMEOUT_S,
        server_check_s: float = CHECK_S,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self._tracking = tracking
        self._init_timeout_s = init_timeout_s
        self._server_check_s = server_check_s
        self._timeout_s = tracking.finish_timeout_s
        self._lock = threading.Lock()
        self._child = ChildLink(command, queue_limit, self._take_answer, self._note)
        self._reset()

    def _reset(self) -> None:
        """Reset the state for a new run. The child stays."""
        self._rows_left = self._tracking.images
        self._unsent = 0
        self._started: dict[str, Any] = {}
        self._start_by_s = time.monotonic() + START_S
        self._errors: list[str] = []
        self._news: list[str] = []
        self.was_stuck = False
        """Whether W&B did not finish the run before the timeout."""
        self._report: TrackingReport | None = None

    def start(
        self,
        config: Mapping[str, Any],
        run_dir: Path,
        *,
        run_id: str,
        name: str,
        job_type: JobType = "run",
        group: str | None = None,
        has_results: bool = True,
    ) -> None:
        """Start a W&B run, and the child unless one waits for another run.

        Args:
            config: shown by W&B as the config of the run.
            run_dir: W&B's files go to `wandb/` in it, or in WANDB_DIR.
            run_id: W&B's id. It must be new for each session, because an offline run cannot be resumed.
            name: shown by W&B.
            job_type: what the run is, for filters in W&B.
            group: W&B's group, if `tracking.group` is None and WANDB_RUN_GROUP is not set.
            has_results: whether `run_dir` is the directory of the results, too. Then the report names W&B's directory
                relative to it, else by its absolute path.
        """
        self._reset()
        settings = WandbSettings.of(self._tracking, run_dir, group)
        try:
            self._child.open(settings.directory / "wandb" / "child.log")
        except OSError as error:
            self._note(f"the W&B process could not be started: {error}")
        self._send(
            "start",
            config=config,
            dir=str(settings.directory),
            run_dir=str(run_dir.absolute()) if has_results else "",
            run_id=run_id,
            name=name,
            job_type=job_type,
            group=settings.group,
            project=settings.project,
            entity=self._tracking.entity,
            tags=settings.tags,
            mode=self._tracking.mode,
            images=self._tracking.images,
            init_timeout_s=self._init_timeout_s,
            server_check_s=self._server_check_s,
            argv=sys.argv,
            pid=os.getpid(),
        )

    def news(self) -> list[str]:
        """What went wrong since the last call, for the user to know while the run continues. Call it every second."""
        with self._lock:
            news, self._news = self._news, []
            if not self._started and not self._errors and time.monotonic() > self._start_by_s:
                self._start_by_s = float("inf")
                news.append(f"no W&B run after {START_S:.0f} s: the figures wait, and the run goes on")
        return news

    @property
    def wants_rows(self) -> bool:
        """Whether the table of samples has room for more rows. If not, callers need not prepare images."""
        return self._rows_left > 0

    def log(self, values: Mapping[str, float | None], wall_s: float) -> None:
        """Log figures at `wall_s`, seconds since the session began. None is left out. `series` lists the names."""
        known = {name: value for name, value in values.items() if value is not None}
        self._send("log", values={**known, "wall_s": wall_s})

    def add_sample_row(self, row: SampleRow) -> None:
        """Add a row to the table of samples. After `tracking.images` rows, nothing happens.

        Another thread reads and shrinks the images, so the caller must not change them. An image given as a function
        takes no memory while the row waits.
        """
        with self._lock:
            if self._rows_left <= 0:
                return
            self._rows_left -= 1
        self._put(row.encode)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table of plain values. It is one message, so it should have thousands of rows at most."""
        self._send("table", name=name, columns=columns, rows=rows)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set values in the summary of the W&B run."""
        self._send("summary", values=values)

    def finish(self, exit_code: int = 0, *, more: bool = False, at_most_s: float | None = None) -> TrackingReport:
        """Close the W&B run. Waits for at most `tracking.finish_timeout_s`; after that the child continues alone.

        `at_most_s` is a shorter time to wait, for a process that must end soon.

        With `more`, the child is kept for another `start`, if it still answers. Another call returns the same report.
        """
        if self._report is None:
            if at_most_s is not None:
                self._timeout_s = min(self._timeout_s, at_most_s)
            self._report = self._finish(exit_code, more)
        return self._report

    def close(self) -> None:
        """End the child that `finish(more=True)` kept, if there is one."""
        self._child.close(self._timeout_s)

    def _finish(self, exit_code: int, more: bool) -> TrackingReport:
        child_exit_code, num_dropped = self._child.finish(exit_code, self._timeout_s, more=more)
        self._judge(child_exit_code)
        with self._lock:
            started, errors = dict(self._started), list(self._errors)
        return TrackingReport(
            mode=started.get("mode"),
            run_id=started.get("run_id"),
            directory=started.get("dir"),
            url=started.get("url"),
            dropped=self._unsent + num_dropped,
            error="; ".join(errors) or None,
        )

    def _judge(self, child_exit_code: int | None) -> None:
        if child_exit_code is None:
            self.was_stuck = True
            self._note(
                f"W&B did not finish within {self._timeout_s:g} s (tracking.finish_timeout_s); it continues alone"
            )
        elif child_exit_code != 0 and not self._errors:
            self._note(f"the W&B process ended with code {child_exit_code} (see wandb/child.log)")

    def _send(self, kind: str, **values: Any) -> None:
        # Encoded at once, because the caller may change `values` later. They are small.
        try:
            line = message(kind, **values)
        except (TypeError, ValueError) as error:
            self._note(f"the message {kind!r} cannot be written as JSON: {error}")
            self._count_unsent()
            return
        self._put(line)

    def _put(self, line: Line) -> None:
        if not self._child.send(line):
            self._count_unsent()

    def _count_unsent(self) -> None:
        with self._lock:
            self._unsent += 1

    def _take_answer(self, answer: dict[str, Any]) -> None:
        with self._lock:
            if answer["type"] == "started":
                self._started = answer
            elif answer["type"] == "news":
                self._news.append(answer["text"])
        if answer["type"] == "error":
            self._note(answer["text"])

    def _note(self, error: str) -> None:
        with self._lock:
            if error not in self._errors and len(self._errors) < _MAX_ERRORS:
                self._errors.append(error)
                self._news.append(error)
