"""Sends lines to a child process and receives JSON lines from it. The sender never waits. It does not know W&B."""

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
"""A line without its newline, or a function that makes it. The writing thread calls the function."""


class LinePipe:
    """Starts `command` in its own session, so that signals to the caller's process group do not reach it.

    Its stderr goes to the file `log`. One thread writes lines. Another thread calls `on_answer` for each JSON object
    that it receives. Both call `on_error` with a text if something fails. They are daemon threads, so a child that
    neither reads nor ends does not block this process.

    Raises:
        OSError: the log cannot be opened, or the process cannot be started.
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
        """Number of lines that were sent but not written: refused, failed, or still queued."""
        with self._lock:
            return self._num_sent - self._num_written

    def send(self, line: Line) -> None:
        """Queue a line. If the queue is full or closed, the line is dropped."""
        with self._lock:
            self._num_sent += 1
            if not self._closed and self._queue.qsize() < self._queue_limit:
                self._queue.put(line)

    def close(self, last: str) -> None:
        """Queue `last`, even if the queue is full, and then the end of the input of the process."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._num_sent += 1
            self._queue.put(last)
            self._queue.put(None)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end of the process and of its answers. Returns the exit code; None if it still runs."""
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
                    # The process is gone. Its answers or its exit code give the reason.
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
                    self._on_error(f"cannot read an answer of the W&B process: {line[:200]!r} ({error})")
        self._process.wait()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
