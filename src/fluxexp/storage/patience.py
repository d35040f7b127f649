"""Waits for a store that has a passing trouble, such as a full disk or a file server that is restarted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from fluxexp.errors import StorageError
from fluxexp.interruption import interruption
from fluxexp.passing_trouble import is_passing
from fluxexp.terminal import say

T = TypeVar("T")

READING_S = 10.0
"""Reads are repeated for at most this long: whoever reads can be started again, and nothing is lost."""
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_HURRY_S = 5.0
"""After an interruption, nothing is repeated for longer: launchers kill a process 30 s after SIGTERM."""
_on_use: list[Callable[[], None]] = []


@contextmanager
def on_each_use(call: Callable[[], None]) -> Generator[None]:
    """Within this context, each try to read or write any store calls `call`, from any thread.

    So a process that waits for a disk, or that writes the files of thousands of runs, does not count as hung.
    """
    _on_use.append(call)
    try:
        yield
    finally:
        _on_use.remove(call)


def _note_use() -> None:
    for call in tuple(_on_use):
        call()


class Patience:
    """Repeats operations on one store until they succeed or `retry_s` seconds have passed. Thread-safe.

    When a write has used up its time, the next writes are tried once, until one succeeds. Otherwise each of the last
    files of a session would wait as long again.

    Args:
        address: of the store, for messages.
        retry_s: seconds; 0 fails at once.
        clock: seconds that never decrease.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        address: str,
        retry_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = address
        self._retry_s = retry_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._since_s = 0.0
        self._is_used_up = False

    def writing(self, key: str, call: Callable[[], T]) -> T:
        """The result of `call`, which writes `key`.

        Raises:
            OSError: the last error, if the time is over or the error does not pass.
            StorageError: the same, if `call` raises it.
        """
        _note_use()
        try:
            result = call()
        except (OSError, StorageError) as error:
            if self._is_used_up or not self._retry_s or not is_passing(error):
                raise
            return self._repeat(key, "written", call, error, self._retry_s)
        self._is_used_up = False
        return result

    def reading(self, key: str, call: Callable[[], T]) -> T:
        """The result of `call`, which reads `key`. Raises OSError as `writing` does."""
        _note_use()
        try:
            return call()
        except OSError as error:
            limit_s = min(READING_S, self._retry_s)
            if not limit_s or not is_passing(error):
                raise
            return self._repeat(key, "read", call, error, limit_s)

    def _repeat(self, key: str, done: str, call: Callable[[], T], error: Exception, limit_s: float) -> T:
        start_s = self._clock()
        if hurries := interruption.requested is not None:
            limit_s = min(limit_s, _HURRY_S)
        self._begin(
            f"{self._address}/{key} cannot be {done}: {_reason(error)}; trying again for {limit_s:g} s", start_s
        )
        wait_s = _FIRST_WAIT_S
        works = False
        try:
            while True:
                _note_use()
                waited_s = self._clock() - start_s
                if interruption.requested is not None and not hurries:
                    hurries, limit_s = True, min(limit_s, waited_s + _HURRY_S)
                left_s = limit_s - waited_s
                self._sleep(max(0.0, min(wait_s, left_s)))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                try:
                    result = call()
                except (OSError, StorageError) as again:
                    if self._clock() - start_s >= limit_s:
                        self._is_used_up = done == "written"
                        raise
                    if not is_passing(again):
                        raise
                else:
                    works = True
                    return result
        finally:
            self._end(works)

    def _begin(self, trouble: str, now_s: float) -> None:
        """Print the trouble, unless another thread already waits for this store."""
        with self._lock:
            self._num_waiting += 1
            if self._num_waiting > 1:
                return
            self._since_s = now_s
        say(f"fluxexp: {trouble} (output.retry_s)", urgent=True)

    def _end(self, works: bool) -> None:
        with self._lock:
            self._num_waiting -= 1
            is_last, waited_s = self._num_waiting == 0, self._clock() - self._since_s
        if works and is_last:
            say(f"fluxexp: {self._address} works again, after {waited_s:.1f} s", urgent=True)


def _reason(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno is not None):
        cause = cause.__cause__ or cause.__context__
    return os.strerror(cause.errno or 0) if isinstance(cause, OSError) else str(error)
