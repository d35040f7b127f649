"""Finds ranks whose device denoises more slowly than the others, and estimates how much time that cost.

Work stealing keeps all ranks busy until the end, so a slow device is not visible in how long the ranks worked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median
from typing import TypedDict

SLOW = 0.7
"""A rank is slow if its speed is below this part of the median speed of the other ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPace:
    """What a rank denoised; see `Totals`."""

    rank: int
    work: float
    work_s: float
    working_s: float
    """Seconds that the rank worked and waited, without its idle time at the end."""

    @property
    def per_s(self) -> float:
        """Work per second of denoising."""
        return self.work / self.work_s


class SlowRank(TypedDict):
    """A rank that is slower than the others."""

    rank: int
    relative_speed: float
    """Its work per second, divided by the median of the other ranks."""
    cost_s: float | None
    """Estimate: how many seconds shorter the work would have been with that median."""


def relative_speeds(per_s: Mapping[int, float | None]) -> dict[int, float]:
    """For each rank, its work per second divided by the median of the other ranks. Unknown rates are left out."""
    known = {rank: rate for rank, rate in per_s.items() if rate is not None and rate > 0}
    if len(known) < 2:
        return {}
    return {rank: rate / median([other for r, other in known.items() if r != rank]) for rank, rate in known.items()}


def slow_ranks(paces: Sequence[RankPace], *, steals: bool) -> list[SlowRank]:
    """The slow ranks, the slowest first.

    Args:
        paces: of all ranks. Those without work are left out.
        steals: whether ranks take work from each other (`parallelism.schedule=steal`).
    """
    known = [pace for pace in paces if pace.work > 0 and pace.work_s > 0]
    speeds = relative_speeds({pace.rank: pace.per_s for pace in known})
    return [
        {"rank": pace.rank, "relative_speed": speed, "cost_s": _cost_s(pace, speed, known, steals=steals)}
        for speed, pace in sorted(((speeds[p.rank], p) for p in known if p.rank in speeds), key=lambda found: found[0])
        if speed < SLOW
    ]


def _cost_s(slow: RankPace, speed: float, paces: Sequence[RankPace], *, steals: bool) -> float:
    """How much shorter the work would have been if `slow` had the median speed of the others, `slow.per_s / speed`."""
    if steals:  # all ranks together do the work, and end at about the same time
        total, together = fsum(pace.work for pace in paces), fsum(pace.per_s for pace in paces)
        return total / together - total / (together - slow.per_s + slow.per_s / speed)
    others_s = max(pace.working_s for pace in paces if pace is not slow)
    return max(0.0, slow.working_s - max(others_s, slow.working_s - slow.work_s * (1 - speed)))
