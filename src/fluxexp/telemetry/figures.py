"""The figures of the ranks that are tracked over time, from their totals and their latest device readings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fluxexp.telemetry.balance import RankLoad, balance

Figures = Mapping[str, Any]
"""Figures of one rank: `RankTotals.snapshot()`; `utilisation` (0..1) and `memory_gib`, None if unknown; `finished_s`,
the time at which it had no more work (seconds since the epoch), None while it works."""


def tracked_series(figures: Mapping[int, Figures]) -> tuple[dict[int, dict[str, float | None]], float | None]:
    """Return the tracked figures by rank, and the imbalance of all ranks."""
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
    """Return the idle seconds of all ranks together.

    The idle time of a rank lasts from its own end to the end of the last rank; to `now_s` while others still work.
    """
    ends = [values["finished_s"] for values in figures.values()]
    known = [end for end in ends if end is not None]
    end_s = max(known) if known and len(known) == len(ends) else now_s
    return math.fsum(max(0.0, end_s - end) for end in known)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
