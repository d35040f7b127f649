"""A thread that waits for something while a rank is inside a collective, which cannot look for itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fluxexp.errors import RankError

_LOOK_S = 0.05


class Watch:
    """Calls `react` once `happened` returns True. Polls from a thread while its context is entered."""

    def __init__(self, happened: Callable[[], bool], react: Callable[[], None]) -> None:
        self._happened = happened
        self._react = react
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                if self._happened():
                    self._react()
                    return
            except RankError:  # the store is lost: the end of the batch reports it
                return
