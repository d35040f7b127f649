"""The connection to the child process that owns W&B runs: start it, send lines, wait for it, and give it up."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fluxexp.tracking.line_pipe import Line, LinePipe

_POLL_S = 0.05


class ChildLink:
    """At most one child process, which can serve several W&B runs one after the other.

    Args:
        command: starts the child.
        queue_limit: largest number of lines that may wait.
        on_answer: receives the answers of the child (`child.py`), except `finished`.
        on_error: receives a text if something fails. Both are called from threads.
    """

    def __init__(
        self,
        command: Sequence[str],
        queue_limit: int,
        on_answer: Callable[[dict[str, Any]], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._command = command
        self._queue_limit = queue_limit
        self._on_answer = on_answer
        self._on_error = on_error
        self._finished = threading.Event()
        self._number = 0
        self._dropped_before = 0
        self.pipe: LinePipe | None = None
        """None if there is no child."""

    def open(self, log: Path) -> None:
        """Begin a run, and start a child unless one waits for another run. `log` gets the output of a new child.

        Raises:
            OSError: the log cannot be opened, or the process cannot be started.
        """
        self._finished.clear()
        self._dropped_before = self.pipe.num_dropped if self.pipe else 0
        log.parent.mkdir(parents=True, exist_ok=True)
        if self.pipe is None:
            self._number += 1
            number = self._number
            self.pipe = LinePipe(
                self._command,
                log=log,
                environ=_child_environ(),
                queue_limit=self._queue_limit,
                # Answers of an abandoned child are ignored.
                on_answer=lambda answer: self._take(answer) if number == self._number else None,
                on_error=lambda error: self._on_error(error) if number == self._number else None,
            )

    def send(self, line: Line) -> bool:
        """Send a line. Returns whether there is a child."""
        if self.pipe is None:
            return False
        self.pipe.send(line)
        return True

    def finish(self, exit_code: int, timeout_s: float, *, more: bool) -> tuple[int | None, int]:
        """Finish the run, and end the child unless `more` runs may follow. Waits for at most `timeout_s`.

        Returns:
            the exit code of the child, 0 if it waits for another run, None if it did not finish in time and continues
            alone; and the number of lines of this run that it did not get.
        """
        pipe = self.pipe
        if pipe is None:
            return 0, 0
        if more:
            pipe.send(message("finish", exit_code=exit_code, more=True))
            code = self._wait_until_finished(pipe, timeout_s)
        else:
            pipe.close(message("finish", exit_code=exit_code))
            code = pipe.wait(timeout_s)
        return code, pipe.num_dropped - self._dropped_before

    def close(self, timeout_s: float) -> None:
        """End the child, if there is one."""
        if self.pipe is not None:
            self.pipe.close(message("finish", exit_code=0))
            self.pipe.wait(timeout_s)
            self.pipe = None

    def _wait_until_finished(self, pipe: LinePipe, timeout_s: float) -> int | None:
        """Wait until the child is ready for another run. A child that has ended or is stuck is abandoned."""
        deadline = time.monotonic() + timeout_s
        exit_code = None
        while exit_code is None and not self._finished.wait(_POLL_S) and time.monotonic() < deadline:
            exit_code = pipe.wait(0)
        if self._finished.is_set():
            return 0
        pipe.close(message("finish", exit_code=0))
        self.pipe = None
        return exit_code

    def _take(self, answer: dict[str, Any]) -> None:
        if answer["type"] == "finished":
            self._finished.set()
        else:
            self._on_answer(answer)


def message(kind: str, **values: Any) -> str:
    """A message to the child (`child.py`). Raises TypeError or ValueError if a value cannot be written as JSON."""
    return json.dumps({"type": kind, **values}, default=str)


def _child_environ() -> dict[str, str]:
    """The environment of this process without its W&B service, which the child must not use."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
