"""The process that owns W&B runs, one at a time: `python -m fluxexp.tracking.child`, started and fed by `Tracker`.

Messages come on stdin, one JSON object a line, `start` first:

    {"type": "start", ...}                      fields: `Tracker.start`
    {"type": "log", "values": {...}}
    {"type": "row", "row": {...}}               fields: `sample_row.COLUMNS`, images as JPEG in base64
    {"type": "table", "name": ..., "columns": [...], "rows": [[...], ...]}
    {"type": "summary", "values": {...}}
    {"type": "finish", "exit_code": 0, "more": false}

and answers go to stdout: `{"type": "started", "mode", "run_id", "dir", "url"}` and `{"type": "error", "text"}`. With
`more`, `finish` is answered by `{"type": "finished"}`, and another `start` may come, until the input ends.

If the input ends without `finish`, the parent has died: the run is closed as failed. SIGINT and SIGTERM mean only that
the parent will soon be gone; this process stays to close the run, but not for ever.
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
"""A process forked from the parent may hold the pipe open after the parent's death, so the parent is looked for."""
SIGNAL_GRACE_S = 60.0
"""How long after a signal the parent is waited for."""
LIFE_AFTER_INPUT_S = 900.0
"""How long after the end of input W&B may take to upload; what is not uploaded by then stays on disk."""
PARENT_DIED = 1


class ParentChannel:
    """The two pipes to the parent, kept for messages alone.

    From here on, what wandb prints goes to stderr (a log file), and a question it asks finds an empty stdin.
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
        """Tell the parent; one that is gone is no reason to stop."""
        if self._output is None:
            return
        try:
            self._output.write(json.dumps({"type": kind, **values}) + "\n")
        except OSError:
            self._output = None

    def log_to(self, path: Path) -> None:
        """From the second run on, what wandb prints goes to that run's own log; the parent opened the first one's."""
        if self._log is not None and self._log != path:
            with suppress(OSError), path.open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
        self._log = path

    def report(self, error: Exception, what: str) -> None:
        """Tell the parent of an error."""
        self.answer("error", text=f"{what}: {type(error).__name__}: {error}")

    def _read(self) -> None:
        """Empty the pipe at once, so that a slow wandb never fills it, and notice its end however wandb hangs."""
        for line in self._input:
            # A parent that is killed leaves its last line torn.
            with suppress(ValueError):
                self.inbox.put(json.loads(line))
        self.inbox.put(_finish(PARENT_DIED))
        _after(LIFE_AFTER_INPUT_S, lambda: os._exit(1))


def main() -> int:
    """Run until told to finish for good, or until the parent is gone; 0 unless a W&B run did not come about."""
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
    """One W&B run, from its `start` to its `finish`, which is given back; None if no run came about."""
    wandb_dir = Path(start["dir"]) / "wandb"
    channel.log_to(wandb_dir / "child.log")
    # W&B stages its files in the run directory, not in the home: an offline run is then whole, its images where its
    # log is.
    os.environ["WANDB_DATA_DIR"] = str(wandb_dir)
    try:
        # wandb is imported here: slow, and perhaps broken.
        from fluxexp.tracking.wandb_run import open_run

        run = open_run(start, upload_timeout_s=LIFE_AFTER_INPUT_S / 2)
    except Exception as error:
        channel.report(error, "no W&B run")
        return None
    if run.problem:
        channel.answer("error", text=run.problem)
    channel.answer("started", **run.identity())
    while (message := next_message(channel.inbox, start["pid"]))["type"] != "finish":
        _try(channel, message["type"], partial(run.take, message))
    _try(channel, "finish", partial(run.finish, message["exit_code"]))
    return message


def next_message(inbox: SimpleQueue[Message], parent_pid: int, check_s: float = PARENT_CHECK_S) -> Message:
    """The next message, or `finish` as failed once the inbox is empty and the parent is another than `parent_pid`."""
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
    """On SIGINT or SIGTERM stay until the input ends, but for `SIGNAL_GRACE_S` at most."""

    def handle(number: int, _frame: object) -> None:
        _after(SIGNAL_GRACE_S, lambda: inbox.put(_finish(128 + number)))

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def _after(delay_s: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, act)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    # Not sys.exit: wandb's exit handlers wait for servers that do not answer, after all is done.
    os._exit(main())
