"""The attempt log: which tasks a process works on, on disk before it starts, so that a dead process can be explained.

Each process appends to a stream of its own in `attempts/`. Its lines are JSON objects with these keys:

- `process` (first line): see `WorkerProcess`.
- `begin`: keys of tasks that the process will read or make from now on. `end`: keys of those that it has recorded.
- `stopping`: the process was asked to stop. If it is killed after that, its tasks are not the reason.

A process that ends in order deletes its stream, and so gives back what it had begun and not recorded.

Lines are not fsynced: the page cache outlives a process, and a crash of the machine is not the fault of a task.
`process_deaths.py` reads the streams.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fluxexp.storage.result_files import ATTEMPTS
from fluxexp.storage.run_store import RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """A process that makes images."""

    session: str
    """Name of the session."""
    rank: int
    host: str
    pid: int

    @classmethod
    def current(cls, session: str, rank: int) -> WorkerProcess:
        """This process."""
        return cls(session=session, rank=rank, host=socket.gethostname(), pid=os.getpid())


class AttemptLog:
    """The stream of one process in one run. Several threads may use it. Methods raise OSError as `RunStore` does."""

    def __init__(self, store: RunStore, process: WorkerProcess, *, is_stopping: bool = False) -> None:
        self._store = store
        self._process = process
        self._stream = f"{ATTEMPTS}{uuid.uuid4().hex}.jsonl"
        self._lock = threading.Lock()
        self._begun: set[str] = set()
        self._ended: list[str] = []
        self._is_open = False
        self._is_stopping = is_stopping

    def begin(self, keys: Iterable[str]) -> None:
        """Append the tasks that this process has not begun yet, if there are any, in one line."""
        with self._lock:
            new = [key for key in dict.fromkeys(keys) if key not in self._begun]
            if not new:
                return
            self._append({"at_s": round(time.time(), 3), "begin": new, "end": self._ended})
            self._begun.update(new)
            self._ended = []

    def end(self, key: str) -> None:
        """Note that the task has a record. It is appended with the next line, because `records` says it, too."""
        with self._lock:
            self._begun.discard(key)
            self._ended.append(key)

    def stop(self) -> None:
        """Note that the process was asked to stop."""
        with self._lock:
            self._is_stopping = True
            if self._is_open:
                self._append({})

    def close(self) -> None:
        """Delete the stream: the process ends its work in order."""
        with self._lock:
            if self._is_open:
                self._store.delete(self._stream)
                self._is_open = False

    def _append(self, line: dict[str, Any]) -> None:
        if not self._is_open:
            line = {"process": asdict(self._process), **line}
        if self._is_stopping:
            line = {**line, "stopping": True}
        self._store.append_record(self._stream, json.dumps(line, ensure_ascii=False).encode(), durable=False)
        self._is_open = True
        self._store.flush(self._stream)  # a process that dies must not keep its last line
