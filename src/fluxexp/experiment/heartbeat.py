"""A rank's pulse: every second it tells the others how far it is; rank 0 shows and tracks the sum of them.

No collective and no waiting: what a rank said last is what counts until it says something new.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from fluxexp.errors import RankError
from fluxexp.parallel.coordinator import Coordinator

RankFigures = Mapping[str, Any]
_EVERY_S = 1.0
_SILENT_S = 60.0


class Heartbeat:
    """Publishes this rank's figures from a thread; on rank 0 hands those of all ranks to `on_beat`."""

    def __init__(
        self,
        coordinator: Coordinator,
        own: Callable[[], RankFigures],
        on_beat: Callable[[Mapping[int, RankFigures]], None] | None,
    ) -> None:
        self._coordinator = coordinator
        self._own = own
        self._on_beat = on_beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            stopping = self._stop.wait(_EVERY_S)
            try:
                self._coordinator.publish_own("pulse", {"at_s": time.time(), **self._own()})
                if self._on_beat is not None:
                    self._on_beat(self._coordinator.read_all("pulse"))
            except (RankError, RuntimeError) as error:
                self.error = error  # the worker will meet the lost store itself, at the end of its work
                return
            if stopping:
                return


def silent_ranks(figures: Mapping[int, RankFigures], now_s: float) -> list[int]:
    """Ranks that have said nothing for a minute: hung, or on a machine that stands still."""
    return [
        rank for rank, values in figures.items() if values["finished_s"] is None and now_s - values["at_s"] > _SILENT_S
    ]
