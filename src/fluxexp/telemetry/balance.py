"""How evenly work lay on the ranks. Knows only seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import TypedDict

MATERIAL_IMBALANCE = 1.1
"""Below this, the slowest rank is just the slowest: naming it would be noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoad:
    """Seconds that a rank worked and waited, from `RankTotals`."""

    rank: int
    busy_s: float
    wait_s: float


class Balance(TypedDict):
    """Balance figures; None where nothing has been done yet.

    `imbalance` is the largest busy time over the mean one: 1 is even, n is one of n ranks doing everything.
    `efficiency` is the share of all ranks' time that was busy: sum of busy / (n * makespan), in (0, 1].
    `straggler` is the rank with the largest busy time where imbalance is at least `MATERIAL_IMBALANCE`.
    """

    imbalance: float | None
    efficiency: float | None
    straggler: int | None


def balance(ranks: Sequence[RankLoad]) -> Balance:
    """Balance of `ranks`, in any order; the makespan is the largest busy plus wait time of a rank."""
    total_s = fsum(load.busy_s for load in ranks)
    if total_s <= 0:
        return {"imbalance": None, "efficiency": None, "straggler": None}
    busiest = min(ranks, key=lambda load: (-load.busy_s, load.rank))
    makespan_s = max(load.busy_s + load.wait_s for load in ranks)
    # The bounds hold exactly; floats may miss them by an ulp.
    imbalance = max(1.0, busiest.busy_s / (total_s / len(ranks)))
    return {
        "imbalance": imbalance,
        "efficiency": min(1.0, total_s / len(ranks) / makespan_s),
        "straggler": busiest.rank if imbalance >= MATERIAL_IMBALANCE else None,
    }
