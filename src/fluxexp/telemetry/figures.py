"""What a run's ranks are shown by: their totals and latest readings as the figures that are tracked over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fluxexp.telemetry.balance import RankLoad, balance

Figures = Mapping[str, Any]
"""Of one rank: `RankTotals.snapshot()` with `utilisation` (0..1) and `memory_gib`, None where unknown, and
`finished_s`, when it had nothing left to do (seconds since the epoch), None while it works."""


def tracked_series(figures: Mapping[int, Figures]) -> tuple[dict[int, dict[str, float | None]], float | None]:
    """What is tracked of each rank, and the imbalance of them all."""
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


def idle_s(figures: Mapping[int, Figures], now_s: float) -> float:
    """Seconds that ranks together have had nothing to do by `now_s`: each from its own end to that of the last one."""
    ends = [values["finished_s"] for values in figures.values()]
    known = [end for end in ends if end is not None]
    end_s = max(known) if known and len(known) == len(ends) else now_s
    return math.fsum(max(0.0, end_s - end) for end in known)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
