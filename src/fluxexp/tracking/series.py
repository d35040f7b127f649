"""Names of the series in W&B, each against `wall_s`, the seconds since the run began."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PER_RANK = ("images_per_s", "busy", "utilisation", "memory_gib", "images")
"""`busy` and `utilisation` are shares in 0..1, `images` counts since the start of the session."""
MAX_RANKS = 64
"""With more ranks than this, W&B gets quantiles over them: it slows down with thousands of series."""
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
WALL = "wall_s"
IMBALANCE = "load/imbalance"
IDLE = "load/idle_s"
"""Seconds that ranks waited since the start of the session, the sum over all of them."""
SAMPLES_TABLE = "samples"
RANKS_TABLE = "ranks"
RANKS_COLUMNS = ("rank", *PER_RANK)

Ranks = Mapping[int, Mapping[str, float | None]]
"""Figures of each rank by their names in `PER_RANK`; None or missing is unknown."""


def series(
    ranks: Ranks, wall_s: float, imbalance: float | None = None, idle_s: float | None = None
) -> dict[str, float]:
    """`rank/<r>/<figure>` for each figure in `PER_RANK`, `load/imbalance`, `load/idle_s`, and `wall_s`.

    With more than `MAX_RANKS` ranks, `ranks/<figure>/<quantile>` stands for the ranks' own series.
    What is unknown, missing, None or not finite, is left out; figures of other names are not W&B's business.
    """
    own = _quantiles(ranks) if len(ranks) > MAX_RANKS else _of_each(ranks)
    load = {IMBALANCE: _known(imbalance), IDLE: _known(idle_s)}
    known = {name: value for name, value in {**own, **load}.items() if value is not None}
    return {**known, WALL: wall_s}


def pattern(figure: str) -> str:
    """A regular expression for the names that `figure`, one of `PER_RANK`, has in `series`, however many the ranks."""
    return rf"^(rank/[0-9]+/{figure}|ranks/{figure}/({'|'.join(QUANTILES)}))$"


def ranks_table(ranks: Ranks) -> list[list[float | None]] | None:
    """Rows of the table of ranks, by rank, in `RANKS_COLUMNS`; None where each rank has series of its own."""
    if len(ranks) <= MAX_RANKS:
        return None
    return [[rank, *(_known(figures.get(name)) for name in PER_RANK)] for rank, figures in sorted(ranks.items())]


def _of_each(ranks: Ranks) -> dict[str, float | None]:
    return {f"rank/{rank}/{name}": _known(figures.get(name)) for rank, figures in ranks.items() for name in PER_RANK}


def _quantiles(ranks: Ranks) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in PER_RANK:
        known = sorted(value for figures in ranks.values() if (value := _known(figures.get(name))) is not None)
        if known:
            values |= {f"ranks/{name}/{label}": _quantile(known, share) for label, share in QUANTILES.items()}
    return values


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of `ordered` lies, linear between neighbours (as numpy's default)."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
