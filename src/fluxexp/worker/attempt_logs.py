"""The attempt logs of one process: one for each run that it works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from fluxexp.storage.attempts import AttemptLog, WorkerProcess
from fluxexp.worker.assignment import WorkOrder


class AttemptLogs:
    """Writes to disk which tasks of which runs this process works on (`storage/attempts.py`).

    Args:
        orders: of all runs of the session, by number.
        process: this process.
        on_error: receives each error of a run's store.
    """

    def __init__(
        self, orders: Sequence[WorkOrder], process: WorkerProcess, on_error: Callable[[WorkOrder, OSError], None]
    ) -> None:
        self.orders = orders
        """By number."""
        self._process = process
        self._on_error = on_error
        self._logs: dict[int, AttemptLog] = {}
        self._is_stopping = False

    def begin(self, tasks: Iterable[tuple[int, str]]) -> None:
        """Write that this process begins tasks, unless it has done so before: (number of the run, task key) of each."""
        keys: dict[int, list[str]] = {}
        for number, key in tasks:
            keys.setdefault(number, []).append(key)
        for number, begun in keys.items():
            if number not in self._logs:
                store = self.orders[number].directory.store
                self._logs[number] = AttemptLog(store, self._process, is_stopping=self._is_stopping)
            self._write(number, partial(AttemptLog.begin, keys=begun))

    def end(self, number: int, key: str) -> None:
        """Note that the work on a task has ended."""
        if number in self._logs:
            self._logs[number].end(key)

    def note_stop(self) -> None:
        """Write that this process was asked to stop: if it is killed now, no task is the reason."""
        self._is_stopping = True
        for number in list(self._logs):
            self._write(number, AttemptLog.stop)

    def close(self) -> None:
        """Delete the logs. Tasks that were begun and have not ended are given back."""
        for number in self._logs:
            self._write(number, AttemptLog.close)

    def _write(self, number: int, use: Callable[[AttemptLog], None]) -> None:
        try:
            use(self._logs[number])
        except OSError as error:
            self._on_error(self.orders[number], error)
