"""The child process that owns W&B runs, one at a time: `python -m fluxexp.tracking.child`. `Tracker` starts it.

It reads messages from stdin, one JSON object per line. The first one is `start`:

    {"type": "start", ...}                      fields: `Tracker.start`
    {"type": "log", "values": {...}}
    {"type": "row", "row": {...}}               fields: `sample_row.COLUMNS`, images as JPEG in base64
    {"type": "table", "name": ..., "columns": [...], "rows": [[...], ...]}
    {"type": "summary", "values": {...}}
    {"type": "finish", "exit_code": 0, "more": false}

It writes answers to stdout: `{"type": "started", "mode", "run_id", "dir", "url"}` and `{"type": "error", "text"}`. It
answers a `finish` with `more` by `{"type": "finished"}`. Then another `start` can follow. `{"type": "news", "text"}`
says that the server stopped answering, or answers again. No figures are lost, so this is not an error of the run.

If the input ends without `finish`, the parent has died, and the child closes the W&B run as failed. SIGINT and SIGTERM
only mean that the parent will end soon. The child then continues, for a limited time, to close the run.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

Message = dict[str, Any]

PARENT_CHECK_S = 5.0
"""Interval of checks that the parent is alive. A process that was forked from the parent can keep the pipe open after
the parent died, so the end of input is not enough."""
SIGNAL_GRACE_S = 60.0
"""How long the child waits for its parent after a signal."""
LIFE_AFTER_INPUT_S = 900.0
"""How long W&B may upload after the end of input. The rest stays on disk."""
PARENT_DIED = 1


class ParentChannel:
    """The two pipes to the parent, reserved for messages.

    It redirects stdout to stderr (a log file) and stdin to /dev/null. So the output of wandb is not mixed with
    messages, and a prompt of wandb finds no input.
    """

    def __init__(self) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self._input = os.fdopen(os.dup(0), encoding="utf-8")
        self._output: TextIO | None = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        os.close(devnull)
        os.dup2(2, 1)
        self._log: Path | None = None
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def answer(self, kind: str, **values: Any) -> None:
        """Send an answer to the parent. If the parent is gone, nothing happens."""
        if self._output is None:
            return
        try:
            self._output.write(json.dumps({"type": kind, **values}) + "\n")
        except OSError:
            self._output = None

    def log_to(self, path: Path) -> None:
        """Redirect the output of wandb to the log of the current run. The parent opened the log of the first run."""
        if self._log is not None and self._log != path:
            with suppress(OSError), path.open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
        self._log = path

    def report(self, error: Exception, what: str) -> None:
        """Send an error to the parent."""
        self.answer("error", text=f"{what}: {type(error).__name__}: {error}")

    def _read(self) -> None:
        """Empty the pipe at once, so that a slow wandb never fills it, and notice its end even if wandb hangs."""
        for line in self._input:
            # A parent that is killed can leave an incomplete last line.
            with suppress(ValueError):
                self.inbox.put(json.loads(line))
        self.inbox.put(_finish(PARENT_DIED))
        _after(LIFE_AFTER_INPUT_S, lambda: os._exit(1))


def main() -> int:
    """Run until a `finish` without `more`, or until the parent is gone. Returns 1 if no W&B run could be opened."""
    channel = ParentChannel()
    _outlast_signals(channel.inbox)
    message = channel.inbox.get()
    if message["type"] != "start":
        return 1
    while message["type"] == "start":
        start = message
        finish = _track(channel, start)
        if finish is None:
            return 1
        if not finish.get("more"):
            return 0
        channel.answer("finished")
        message = next_message(channel.inbox, start["pid"])
    return 0


def _track(channel: ParentChannel, start: Message) -> Message | None:
    """Handle one W&B run, from `start` to `finish`. Returns the `finish` message; None if no run could be opened."""
    wandb_dir = Path(start["dir"]) / "wandb"
    channel.log_to(wandb_dir / "child.log")
    # W&B stages its files in the run directory, not in the home directory. So an offline run is complete: its images
    # are beside its log.
    os.environ["WANDB_DATA_DIR"] = str(wandb_dir)
    try:
        # Imported here, because wandb is slow to import and may be broken.
        from fluxexp.tracking.wandb_run import open_run

        run = open_run(start, upload_timeout_s=LIFE_AFTER_INPUT_S / 2)
    except Exception as error:
        channel.report(error, "no W&B run")
        return None
    if run.problem:
        channel.answer("error", text=run.problem)
    channel.answer("started", **run.identity())
    with run.watched_server(lambda text: channel.answer("news", text=text), start["server_check_s"]):
        while (message := next_message(channel.inbox, start["pid"]))["type"] != "finish":
            _try(channel, message["type"], partial(run.take, message))
    _try(channel, "finish", partial(run.finish, message["exit_code"]))
    return message


def next_message(inbox: SimpleQueue[Message], parent_pid: int, check_s: float = PARENT_CHECK_S) -> Message:
    """Return the next message. If the inbox is empty and the parent `parent_pid` has died, return a failed `finish`."""
    while True:
        try:
            return inbox.get(timeout=check_s)
        except Empty:
            if os.getppid() != parent_pid:
                return _finish(PARENT_DIED)


def _try(channel: ParentChannel, what: str, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:
        channel.report(error, f"W&B {what}")


def _finish(exit_code: int) -> Message:
    return {"type": "finish", "exit_code": exit_code}


def _outlast_signals(inbox: SimpleQueue[Message]) -> None:
    """On SIGINT or SIGTERM, continue until the input ends, for at most `SIGNAL_GRACE_S`."""

    def handle(number: int, _frame: object) -> None:
        _after(SIGNAL_GRACE_S, lambda: inbox.put(_finish(128 + number)))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _after(delay_s: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, act)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    # Not sys.exit: the exit handlers of wandb would wait for servers that do not answer.
    os._exit(main())
