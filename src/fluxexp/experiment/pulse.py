"""A rank's pulse: every second it tells the others how far it is; rank 0 shows and tracks the sum of them.

No collective and no waiting: what a rank said last is what counts until it says something new.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from fluxexp.errors import RankError
from fluxexp.parallel.meeting import Meeting
from fluxexp.telemetry import RankLoad, balance

Figures = Mapping[str, Any]
_EVERY_S = 1.0
_SILENT_S = 60.0


class Pulse:
    """Publishes this rank's figures from a thread; on rank 0 hands those of all ranks to `on_beat`."""

    def __init__(
        self,
        meeting: Meeting,
        own: Callable[[], Figures],
        on_beat: Callable[[Mapping[int, Figures]], None] | None,
    ) -> None:
        self._meeting = meeting
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
                self._meeting.publish_own("pulse", {"at_s": time.time(), **self._own()})
                if self._on_beat is not None:
                    self._on_beat(self._meeting.read_all("pulse"))
            except (RankError, RuntimeError) as error:
                self.error = error  # the worker will meet the lost store itself, at the end of its work
                return
            if stopping:
                return


def silent_ranks(figures: Mapping[int, Figures], now_s: float) -> list[int]:
    """Ranks that have said nothing for a minute: hung, or on a machine that stands still."""
    return [rank for rank, values in figures.items() if not values["is_over"] and now_s - values["at_s"] > _SILENT_S]


def tracked_series(figures: Mapping[int, Figures]) -> tuple[dict[int, dict[str, float | None]], float | None]:
    """What W&B is told of each rank, and the imbalance of them all."""
    per_rank = {
        rank: {
            "images_per_s": values["images_per_s"],
            "busy": _share(values["busy_s"], values["busy_s"] + values["wait_s"]),
            "utilisation": values["utilisation"],
            "memory_gib": values["memory_gib"],
            "images": float(values["num_images"]),
        }
        for rank, values in figures.items()
    }
    loads = [RankLoad(rank=rank, busy_s=v["busy_s"], wait_s=v["wait_s"]) for rank, v in figures.items()]
    return per_rank, balance(loads)["imbalance"]


def idle_s(figures: Mapping[int, Figures]) -> float:
    """Seconds that all ranks together have waited since the session began."""
    return math.fsum(values["wait_s"] for values in figures.values())


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
