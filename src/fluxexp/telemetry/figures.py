"""The figures of the ranks at one moment: their totals and their latest device readings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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


def idle_s(figures: Mapping[int, RankFigures], now_s: float) -> float:
    """Return the idle seconds of all ranks together.

    The idle time of a rank lasts from its own end to the end of the last rank; to `now_s` while others still work.
    """
    ends = [values.finished_s for values in figures.values()]
    known = [end for end in ends if end is not None]
    end_s = max(known) if known and len(known) == len(ends) else now_s
    return math.fsum(max(0.0, end_s - end) for end in known)
