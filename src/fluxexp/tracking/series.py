"""Names of the time series in W&B. Their x axis is `wall_s`, the seconds since the session began."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PER_RANK = ("images_per_s", "busy", "utilisation", "memory_gib", "images")
"""Figures of each rank. `busy` and `utilisation` are shares in 0..1; `images` counts since the start of the session."""
MAX_RANKS = 64
"""With more ranks than this, W&B gets quantiles over the ranks, because thousands of series make it slow."""
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
WALL = "wall_s"
IMBALANCE = "load/imbalance"
IDLE = "load/idle_s"
"""Idle seconds of all ranks together since the start of the session."""
SAMPLES_TABLE = "samples"
RANKS_TABLE = "ranks"
RANKS_COLUMNS = ("rank", *PER_RANK)

Ranks = Mapping[int, Mapping[str, float | None]]
"""Figures by rank and by name in `PER_RANK`. None or missing: unknown."""


def series(
    ranks: Ranks, wall_s: float, imbalance: float | None = None, idle_s: float | None = None
) -> dict[str, float]:
    """Return `rank/<r>/<figure>` for each figure in `PER_RANK`, `load/imbalance`, `load/idle_s`, and `wall_s`.

    With more than `MAX_RANKS` ranks, `ranks/<figure>/<quantile>` replaces `rank/<r>/<figure>`. Unknown values (missing,
    None or not finite) and figures with other names are left out.
    """
    own = _quantiles(ranks) if len(ranks) > MAX_RANKS else _of_each(ranks)
    load = {IMBALANCE: _known(imbalance), IDLE: _known(idle_s)}
    known = {name: value for name, value in {**own, **load}.items() if value is not None}
    return {**known, WALL: wall_s}


def pattern(figure: str) -> str:
    """Return a regular expression for the series names of `figure` (one of `PER_RANK`), for any number of ranks."""
    return rf"^(rank/[0-9]+/{figure}|ranks/{figure}/({'|'.join(QUANTILES)}))$"


def ranks_table(ranks: Ranks) -> list[list[float | None]] | None:
    """Return the rows of the table of ranks, with `RANKS_COLUMNS`; None if each rank has its own series."""
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
    """Return the quantile `share` of `ordered`, with linear interpolation, as numpy does by default."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
