"""Measures how evenly the work was divided among the ranks, and finds the probable cause if one rank took longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median
from typing import TypedDict

from fluxexp.telemetry.slow_ranks import RankPace, SlowRank, slow_ranks

MATERIAL_IMBALANCE = 1.1
"""Ratio of the slowest rank's time to the mean time. Below it, differences are normal, and no straggler is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoad:
    """Seconds that a rank worked, waited (for data or for the writer) and was idle at the end, and the work that it
    did in `work_s` seconds; see `RankTotals`."""

    rank: int
    busy_s: float
    wait_s: float
    idle_s: float = 0.0
    num_images: int = 0
    batch_size: float | None = None
    """Mean number of tasks per batch."""
    work: float = 0.0
    work_s: float = 0.0


class Balance(TypedDict):
    """Balance figures of n ranks. All are None before any work is done.

    `imbalance`: largest busy time divided by the mean busy time. 1: even; n: one rank did everything.
    `efficiency`: share of the ranks' time that was busy, sum of busy / (n * makespan), in (0, 1].
    `straggler`: the rank that worked and waited longest; None if that is less than `MATERIAL_IMBALANCE` times the mean.
    `cause`: the probable cause in words; None if there is no straggler or no cause stands out.
    `idle_s`: idle seconds of all ranks together, at their ends.
    `slow_ranks`: the ranks that denoise more slowly than the others, even if stealing kept all ranks busy.
    """

    imbalance: float | None
    efficiency: float | None
    straggler: int | None
    cause: str | None
    idle_s: float | None
    slow_ranks: list[SlowRank]


def balance(ranks: Sequence[RankLoad], *, steals: bool = True) -> Balance:
    """Compute the balance of `ranks`. The makespan is the largest sum of busy, wait and idle time of a rank.

    `steals`: whether ranks take work from each other.
    """
    total_s = fsum(load.busy_s for load in ranks)
    if total_s <= 0:
        return {
            "imbalance": None,
            "efficiency": None,
            "straggler": None,
            "cause": None,
            "idle_s": None,
            "slow_ranks": [],
        }
    busiest_s = max(load.busy_s for load in ranks)
    makespan_s = max(load.busy_s + load.wait_s + load.idle_s for load in ranks)
    straggler = _straggler(ranks)
    return {
        # Rounding can violate the exact bounds by an ulp.
        "imbalance": max(1.0, busiest_s / (total_s / len(ranks))),
        "efficiency": min(1.0, total_s / len(ranks) / makespan_s),
        "straggler": straggler.rank if straggler else None,
        "cause": _likely_cause(straggler, [load for load in ranks if load is not straggler]) if straggler else None,
        "idle_s": fsum(load.idle_s for load in ranks),
        "slow_ranks": slow_ranks([_pace(load) for load in ranks], steals=steals),
    }


def _pace(load: RankLoad) -> RankPace:
    return RankPace(rank=load.rank, work=load.work, work_s=load.work_s, working_s=_working_s(load))


def _straggler(ranks: Sequence[RankLoad]) -> RankLoad | None:
    longest = min(ranks, key=lambda load: (-_working_s(load), load.rank))
    mean_s = fsum(map(_working_s, ranks)) / len(ranks)
    return longest if _working_s(longest) >= MATERIAL_IMBALANCE * mean_s else None


def _working_s(load: RankLoad) -> float:
    return load.busy_s + load.wait_s


def _likely_cause(straggler: RankLoad, others: Sequence[RankLoad]) -> str | None:
    """The first cause for which the straggler differs clearly from the median of the others; None if there is none."""
    if straggler.wait_s > 0.2 * _working_s(straggler) and straggler.wait_s > 2 * median(o.wait_s for o in others):
        return "slow disk: it waited long for data, or for the writer"
    paces = [load.busy_s / load.num_images for load in others if load.num_images]
    if straggler.num_images and paces and straggler.busy_s / straggler.num_images > 1.15 * median(paces):
        sizes = [load.batch_size for load in others if load.batch_size]
        if straggler.batch_size and sizes and straggler.batch_size < 0.75 * median(sizes):
            return "less memory: its batches were smaller"
        return "slower device, or more expensive images"
    if straggler.num_images > 1.1 * median(load.num_images for load in others):
        return "more work: it made more images"
    return None
