"""Figures of the ranks over the time since the last look, so that their series show when a rank is slow or idle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxexp.telemetry.figures import RankFigures, idle_s
from fluxexp.telemetry.slow_ranks import relative_speeds
from fluxexp.telemetry.throughput import Totals

_SHORTEST_S = 0.1
"""No throughput of all ranks is computed over less time than this, because one image more or less would change it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the ranks did since the last window. None: unknown."""

    ranks: Mapping[int, Mapping[str, float | None]]
    """Figures by rank, under their names in W&B: see `_Mark.figures`."""
    imbalance: float | None
    """Largest busy share of a rank, divided by the mean of all ranks."""
    idle_s: float
    """Idle seconds of all ranks together since the start of the session."""
    images_per_s: float | None
    """Images of all ranks per second of the window."""
    num_images: int
    """Since the start of the session, of all ranks."""
    num_failed: int

    def session_values(self, resumed: int, total: int | None) -> dict[str, float | None]:
        """Figures of all ranks together, under their names in W&B.

        Args:
            resumed: images that earlier sessions made.
            total: images of the run; None if unknown.
        """
        speeds = [speed for rank in self.ranks.values() if (speed := rank["speed"]) is not None]
        return {
            "load/imbalance": self.imbalance,
            "load/idle_s": self.idle_s,
            "load/slowest_speed": min(speeds, default=None),
            "progress/images_per_s": self.images_per_s,
            "progress/done": resumed + self.num_images,
            "progress/failed": self.num_failed,
            "progress/total": total,
        }


class Windows:
    """Cuts the figures of a session into windows. The first one begins at `start_s`, in seconds since the epoch."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._end_s = start_s
        self._num_images = 0
        self._marks: dict[int, _Mark] = {}

    def next(self, figures: Mapping[int, RankFigures], now_s: float) -> Window:
        """The window from the last call to `now_s`.

        A rank reports a batch when it ends. So the window of a rank begins and ends with the end of a batch. If no
        batch has ended since the last call, its figures are unknown, and its next window is longer. The window of a
        rank that has no more work ends at `now_s`.
        """
        marks = {rank: self._marks.get(rank, _Mark(end_s=self._start_s)) for rank in figures}
        nexts = {rank: mark.next(figures[rank], now_s) for rank, mark in marks.items()}
        self._marks |= nexts
        speeds = relative_speeds({rank: mark.pace for rank, mark in nexts.items()})
        ranks = {rank: marks[rank].figures(nexts[rank], figures[rank], speeds.get(rank)) for rank in figures}
        return Window(
            ranks=ranks,
            imbalance=_imbalance([mark.busy for mark in nexts.values() if mark.busy is not None]),
            idle_s=idle_s(figures, now_s),
            images_per_s=self._images_per_s(figures, now_s),
            num_images=sum(values.totals.num_images for values in figures.values()),
            num_failed=sum(values.totals.num_failed for values in figures.values()),
        )

    def _images_per_s(self, figures: Mapping[int, RankFigures], now_s: float) -> float | None:
        num_images, length_s = sum(values.totals.num_images for values in figures.values()), now_s - self._end_s
        if length_s < _SHORTEST_S:
            return None
        made, self._num_images, self._end_s = num_images - self._num_images, num_images, now_s
        return made / length_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """The end of one rank's last window."""

    end_s: float
    totals: Totals = field(default_factory=Totals)
    pace: float | None = None
    """Work per second of denoising in the last window in which the rank denoised."""
    busy: float | None = None
    """Busy share of the last window."""

    def next(self, figures: RankFigures, now_s: float) -> _Mark:
        """The end of the next window; this one if no batch has ended since."""
        totals = figures.totals
        end_s = now_s if figures.finished_s is not None else totals.until_s
        if end_s is None or end_s <= self.end_s:
            return self
        work_s = totals.work_s - self.totals.work_s
        pace = (totals.work - self.totals.work) / work_s if work_s > 0 else self.pace
        busy = min(1.0, (totals.busy_s - self.totals.busy_s) / (end_s - self.end_s))
        return _Mark(end_s=end_s, totals=totals, pace=pace, busy=max(0.0, busy))

    def figures(self, following: _Mark, figures: RankFigures, speed: float | None) -> dict[str, float | None]:
        """The figures between this mark and the following one, and the device's latest readings.

        `busy`: share of the time in condition, denoise and decode. `queue`: share in which the rank waited for data,
        the writer or tasks. `idle`: share after the rank's end. The rest is loading and work on the host.
        `speed`: work per second of denoising, divided by the median of the other ranks.
        """
        shares = dict.fromkeys(("images_per_s", "work_per_s", "speed", "busy", "queue", "idle"))
        return {
            **(shares if following is self else self._shares(following, figures.finished_s) | {"speed": speed}),
            "utilisation": figures.utilization,
            "memory_gib": figures.memory_gib,
            "images": float(figures.totals.num_images),
        }

    def _shares(self, following: _Mark, finished_s: float | None) -> dict[str, float | None]:
        length_s, before, after = following.end_s - self.end_s, self.totals, following.totals
        busy = following.busy or 0.0
        idle_s = 0.0 if finished_s is None else following.end_s - max(self.end_s, finished_s)
        queue_s = after.wait_s + after.steal_s - before.wait_s - before.steal_s
        return {
            "images_per_s": (after.num_images - before.num_images) / length_s,
            "work_per_s": (after.work - before.work) / length_s,
            "busy": busy,
            "queue": min(1 - busy, max(0.0, queue_s / length_s)),
            "idle": min(1 - busy, max(0.0, idle_s / length_s)),
        }


def _imbalance(busy: list[float]) -> float | None:
    total = math.fsum(busy)
    return max(1.0, max(busy) * len(busy) / total) if total > 0 else None
