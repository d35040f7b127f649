"""The W&B run inside the child process. This is the only module that imports wandb."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import wandb

from fluxexp.tracking.image_strip import MAX_STRIPS, caption, image_strip
from fluxexp.tracking.sample_row import COLUMNS, IMAGE_COLUMNS, decode_thumbnail
from fluxexp.tracking.series import IMAGES, PREFIXES, SAMPLES_TABLE, WALL
from fluxexp.tracking.server_watch import ServerWatch
from fluxexp.tracking.tracking_report import Mode

MAX_INCREMENTS = 90
"""Largest number of increments of the table of samples. W&B shows only the latest 100."""
MIN_ROWS_PER_INCREMENT = 4


def open_run(start: Mapping[str, Any], *, upload_timeout_s: float) -> WandbRun:
    """Open the run that `start` describes (fields: `Tracker.start`). If online is not possible, open it offline.

    Raises:
        Exception: any error of wandb, if an offline run cannot be opened either.
    """
    sys.argv = start["argv"]  # W&B shows it as the command of the run
    mode, problem = _choose_mode(start["mode"])
    if mode == "online":
        try:
            return WandbRun(_init(start, mode, upload_timeout_s), start, mode, problem)
        except Exception as error:
            mode, problem = "offline", f"logged offline, because online failed: {_describe(error)}"
            # W&B's service still holds the failed run and would refuse its id.
            wandb.teardown(exit_code=1)
    return WandbRun(_init(start, mode, upload_timeout_s), start, mode, problem)


class WandbRun:
    """An open W&B run that handles messages (format: `child.py`). `problem` says why the mode is not the wanted one."""

    def __init__(self, run: wandb.Run, start: Mapping[str, Any], mode: Mode, problem: str | None) -> None:
        self._run = run
        self._root = Path(start["run_dir"])
        self._mode = mode
        self.problem = problem
        # Incremental: only new rows are sent. So rows are visible while the run continues, and a crash of this process
        # loses only the rows since the last increment.
        self._table = wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")
        self._rows_per_increment = max(MIN_ROWS_PER_INCREMENT, -(-start["images"] // MAX_INCREMENTS))
        self._num_pending_rows = 0
        self._strips: list[wandb.Image] = []
        self._num_logged_strips = 0
        run.define_metric(WALL)
        for prefix in PREFIXES:
            run.define_metric(f"{prefix}*", step_metric=WALL)

    def identity(self) -> dict[str, str | None]:
        """Return mode, id, directory and URL of the run. The directory is relative to the run directory if it is in it,
        else absolute.
        """
        directory = Path(self._run.settings.sync_dir)
        within = directory.relative_to(self._root) if directory.is_relative_to(self._root) else directory
        return {
            "mode": self._mode,
            "run_id": self._run.id,
            "dir": within.as_posix() if directory.is_dir() else None,
            "url": self._run.url if self._mode == "online" else None,
        }

    def watched_server(self, tell: Callable[[str], None], check_s: float) -> AbstractContextManager[object]:
        """A context in which `tell` receives a text if the server of an online run stops answering."""
        if self._mode != "online":
            return nullcontext()
        settings = self._run.settings
        proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
        used = {scheme: url for scheme, url in proxies.items() if url}
        return ServerWatch(settings.base_url, used, tell, check_s)

    def take(self, message: Mapping[str, Any]) -> None:
        """Handle one message.

        Raises:
            ValueError: the type of the message is unknown.
        """
        match message["type"]:
            case "log":
                self._run.log(message["values"])
            case "row":
                self._add_row(message["row"])
            case "table":
                # A setting can have values of several types, for example a number and null.
                table = wandb.Table(columns=message["columns"], data=message["rows"], allow_mixed_types=True)
                self._run.log({message["name"]: table})
            case "summary":
                self._run.summary.update(message["values"])
            case unknown:
                raise ValueError(f"unknown message: {unknown}")

    def finish(self, exit_code: int) -> None:
        """Log the remaining rows and images, close the run, and end W&B's service."""
        try:
            self._log_rows()
            self._log_strips()
        finally:
            self._run.finish(exit_code=exit_code)
            wandb.teardown()

    def _add_row(self, row: Mapping[str, Any]) -> None:
        self._table.add_data(*(_cell(name, row[name]) for name in COLUMNS))
        self._num_pending_rows += 1
        if self._num_pending_rows >= self._rows_per_increment:
            self._log_rows()
        if len(self._strips) < MAX_STRIPS and (strip := image_strip(row)) is not None:
            self._strips.append(wandb.Image(strip, caption=caption(row), file_type="jpg"))
            # W&B shows the images of one step, so all of them are sent again: each time when their number has doubled.
            if len(self._strips) in (MAX_STRIPS, max(MIN_ROWS_PER_INCREMENT, 2 * self._num_logged_strips)):
                self._log_strips()

    def _log_strips(self) -> None:
        if len(self._strips) > self._num_logged_strips:
            self._num_logged_strips = len(self._strips)
            self._run.log({IMAGES: self._strips})

    def _log_rows(self) -> None:
        if self._num_pending_rows:
            self._num_pending_rows = 0
            self._run.log({SAMPLES_TABLE: self._table})


def _cell(column: str, value: str | None) -> object:
    if column in IMAGE_COLUMNS and value is not None:
        return wandb.Image(decode_thumbnail(value), file_type="jpg")
    return value


def _choose_mode(wanted: Mode | None) -> tuple[Mode, str | None]:
    """Choose the mode to try. The second value says why it is offline, if there are credentials that cannot be used.

    If `wanted` is None, the setting decides (WANDB_MODE, `wandb offline`), then whether wandb finds credentials. They
    are not verified here, because that needs the server.
    """
    if wanted is not None:
        return wanted, None
    setting = wandb.setup().settings.mode
    if setting == "disabled":
        return "disabled", None
    if setting in ("offline", "dryrun"):
        return "offline", None
    try:
        return ("online" if wandb.login(prompt=False, verify=False) else "offline"), None
    except Exception as error:
        return "offline", f"logged offline, because the credentials cannot be used: {_describe(error)}"


def _init(start: Mapping[str, Any], mode: Mode, upload_timeout_s: float) -> wandb.Run:
    return wandb.init(
        project=start["project"],
        entity=start["entity"],
        group=start["group"],
        job_type=start["job_type"],
        tags=start["tags"],
        name=start["name"],
        id=start["run_id"],
        dir=start["dir"],
        config=start["config"],
        mode=mode,
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=start["init_timeout_s"],
            finish_timeout=upload_timeout_s,
            program=start["argv"][0] or None,
            use_dot_wandb=False,
            # W&B's system monitor stays on. It sees every GPU of the host and costs the ranks nothing. Its process
            # figures must be those of rank 0, not of this process.
            x_stats_pid=start["pid"],
        ),
    )


def _describe(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"
