"""Estimates when a phase ends, from the rate at which its items finished recently."""

from __future__ import annotations

from collections import deque

RECENT_S = 60.0
"""Only this period counts for the rate, so that a slow start does not count for long."""
_MIN_CHANGES = 3
"""At least this many changes of the number of finished items stay, even if they are older."""
_WEIGHT = 0.3
"""Weight of the newest estimate of the end. The displayed time counts down, and does not follow each batch. The first
estimates have equal weights, so that the very first one, which is the least accurate, does not stay."""


class RemainingTime:
    """The time until all items are finished. Seconds come from the caller's clock, which never goes back."""

    def __init__(self, start_s: float) -> None:
        self._changes: deque[tuple[float, int]] = deque([(start_s, 0)])
        self._end_s: float | None = None
        self._num_estimates = 0

    @property
    def per_s(self) -> float | None:
        """Items per second; None before the first one."""
        (then_s, then), (last_s, last) = self._changes[0], self._changes[-1]
        return (last - then) / (last_s - then_s) if last > then and last_s > then_s else None

    def update(self, now_s: float, finished: int, left: int, per_s: float | None = None) -> None:
        """Note how many items are finished since the start, and how many are left.

        `per_s`: measured items per second; None if it is unknown. It gives the first estimate: the first items may have
        been in work long before the start, so the time since then says nothing about them.
        """
        if finished <= self._changes[-1][1]:
            return
        if per_s and self._end_s is None:
            self._changes = deque([(now_s, finished)])
            self._end_s, self._num_estimates = now_s + left / per_s, 1
            return
        # Items finish in batches. So the rate is taken between changes, and not at the time of the update.
        self._changes.append((now_s, finished))
        while len(self._changes) > _MIN_CHANGES and now_s - self._changes[1][0] >= RECENT_S:
            self._changes.popleft()
        if (recent_per_s := self.per_s) is None:
            return
        self._num_estimates += 1
        end_s, weight = now_s + left / recent_per_s, max(_WEIGHT, 1 / self._num_estimates)
        self._end_s = end_s if self._end_s is None else self._end_s + weight * (end_s - self._end_s)

    def seconds(self, now_s: float) -> float | None:
        """Seconds until the end; None if they are unknown: before the first item, or after the estimated end."""
        if self._end_s is None or self._end_s <= now_s:
            return None
        return self._end_s - now_s
