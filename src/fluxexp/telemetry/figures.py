"""The figures of the ranks that are tracked over time, from their totals and their latest device readings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fluxexp.telemetry.balance import RankLoad, balance
from fluxexp.telemetry.throughput import Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFigures:
    """The figures of one rank at one moment."""

    totals: Totals
    utilization: float | None
    """0..1, from the latest reading of the device; None if unknown."""
    memory_gib: float | None
    """GiB, from the latest reading of the device; None if unknown."""
    finished_s: float | None
    """When the rank had no more work, in seconds since the epoch; None while it works."""


def tracked_series(
    figures: Mapping[int, RankFigures],
) -> tuple[dict[int, dict[str, float | None]], float | None]:
    """Return the tracked figures by rank, under their names in W&B, and the imbalance of all ranks."""
    per_rank = {rank: _tracked(values) for rank, values in figures.items()}
    totals = {rank: values.totals for rank, values in figures.items()}
    loads = [RankLoad(rank=rank, busy_s=total.busy_s, wait_s=total.wait_s) for rank, total in totals.items()]
    return per_rank, balance(loads)["imbalance"]


def _tracked(figures: RankFigures) -> dict[str, float | None]:
    totals = figures.totals
    return {
        "images_per_s": totals.images_per_s,
        "busy": _share(totals.busy_s, totals.busy_s + totals.wait_s),
        "utilisation": figures.utilization,
        "memory_gib": figures.memory_gib,
        "images": float(totals.num_images),
    }


def idle_s(figures: Mapping[int, RankFigures], now_s: float) -> float:
    """Return the idle seconds of all ranks together.

    The idle time of a rank lasts from its own end to the end of the last rank; to `now_s` while others still work.
    """
    ends = [values.finished_s for values in figures.values()]
    known = [end for end in ends if end is not None]
    end_s = max(known) if known and len(known) == len(ends) else now_s
    return math.fsum(max(0.0, end_s - end) for end in known)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
