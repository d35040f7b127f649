"""A process that is fed lines and answers with JSON lines, without its feeder ever waiting. Knows nothing of W&B."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

Line = str | Callable[[], str]
"""A line without its newline, or how to make it: then it is made on the writing thread."""


class LinePipe:
    """Starts `command` in a session of its own, so that no signal to the caller's group reaches it.

    Its stderr goes to the file `log`. A thread writes lines, another calls `on_answer` for each JSON object that comes
    back, and `on_error` with a text for anything that goes wrong. Both are daemons: a process that neither reads nor
    ends holds nobody up.

    Raises:
        OSError: the log cannot be opened or the process not started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str],
        queue_limit: int,
        on_answer: Callable[[dict[str, Any]], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._on_answer = on_answer
        self._on_error = on_error
        self._queue_limit = queue_limit
        self._queue: SimpleQueue[Line | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._num_sent = 0
        self._num_written = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as log_file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=dict(environ),
                bufsize=0,
                start_new_session=True,
            )
        self._writer = threading.Thread(target=self._write_lines, name="line-pipe-writer", daemon=True)
        self._reader = threading.Thread(target=self._read_answers, name="line-pipe-reader", daemon=True)
        self._writer.start()
        self._reader.start()

    @property
    def num_dropped(self) -> int:
        """Lines sent but not written: refused, failed, or (until `close` has worked through them) still queued."""
        with self._lock:
            return self._num_sent - self._num_written

    def send(self, line: Line) -> None:
        """Queue a line; with a full or closed queue it is dropped."""
        with self._lock:
            self._num_sent += 1
            if not self._closed and self._queue.qsize() < self._queue_limit:
                self._queue.put(line)

    def close(self, last: str) -> None:
        """Queue `last` however full the queue is, then the end of the process's input."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._num_sent += 1
            self._queue.put(last)
            self._queue.put(None)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code of the process, once it has ended and all answers are in; None if it still runs."""
        self._reader.join(timeout_s)
        return None if self._reader.is_alive() else self._process.returncode

    def _write_lines(self) -> None:
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            while (line := self._queue.get()) is not None:
                try:
                    text = line if isinstance(line, str) else line()
                except Exception as error:
                    self._on_error(f"{type(error).__name__}: {error}")
                    continue
                try:
                    _write_all(stdin.fileno(), text.encode() + b"\n")
                except OSError:
                    # The process is gone. Whoever waits for it learns why from its answers or its exit code.
                    self._closed = True
                    return
                with self._lock:
                    self._num_written += 1

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                try:
                    answer = json.loads(line)
                    self._on_answer(answer)
                except Exception as error:
                    self._on_error(f"answer not understood: {line[:200]!r} ({error})")
        self._process.wait()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
