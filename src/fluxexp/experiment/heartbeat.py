"""Heartbeats: every second each rank publishes its figures, and rank 0 reads those of all ranks.

No collective and no wait: the latest heartbeat of a rank counts until the rank publishes a newer one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

from fluxexp.errors import RankError
from fluxexp.experiment.session_messages import HEARTBEAT, Heartbeat
from fluxexp.parallel.coordinator import Coordinator
from fluxexp.telemetry import RankFigures

_EVERY_S = 1.0


class HeartbeatSender:
    """Publishes this rank's figures from a thread. On rank 0 it also passes the figures of all ranks to `on_beat`."""

    def __init__(
        self,
        coordinator: Coordinator,
        own_figures: Callable[[], RankFigures],
        on_beat: Callable[[Mapping[int, Heartbeat]], None] | None,
    ) -> None:
        self._coordinator = coordinator
        self._own_figures = own_figures
        self._on_beat = on_beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def send(self) -> None:
        """Publish the figures now. A rank does it before its result, so that rank 0 has them at the end of a round."""
        HEARTBEAT.publish_own(self._coordinator, Heartbeat(time.time(), self._own_figures()))

    def _run(self) -> None:
        while True:
            is_last = self._stop.wait(_EVERY_S)
            try:
                self.send()
                if self._on_beat is not None:
                    self._on_beat(HEARTBEAT.read_all(self._coordinator))
            except (RankError, RuntimeError) as error:
                self.error = error  # if the store is lost, the worker finds out at the end of its work
                return
            except Exception as error:  # the figures or their display: the heart must not stop for them
                self.error = error
            if is_last:
                return
