"""Names of the time series in W&B. Their x axis is `wall_s`, the seconds since the session began."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

PER_RANK = ("images_per_s", "work_per_s", "speed", "busy", "queue", "idle", "utilisation", "memory_gib", "images")
"""Figures of each rank. All but the last three are about the time since the last point of the series.

`images_per_s`, `work_per_s`: images, and transformer passes times tokens, per second. `speed`: work per second of
denoising, divided by the median of the other ranks. `busy`, `queue`, `idle`, `utilisation`: shares in 0..1 of the time
in which the rank worked, waited for data, the writer or tasks, had no more work, and used its device. `images` counts
since the start of the session.
"""
MAX_RANKS = 64
"""With more ranks than this, W&B gets quantiles over the ranks, because thousands of series make it slow."""
QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}
WALL = "wall_s"
IMBALANCE = "load/imbalance"
"""Largest busy share of a rank, divided by the mean of all ranks, since the last point of the series."""
IDLE = "load/idle_s"
"""Idle seconds of all ranks together since the start of the session."""
SLOWEST = "load/slowest_speed"
"""Smallest `speed` of a rank."""
RATE = "progress/images_per_s"
"""Images of all ranks per second since the last point of the series."""
DONE, FAILED, TOTAL = "progress/done", "progress/failed", "progress/total"
"""Images that exist, tasks of this session that failed, and all tasks."""
PREFIXES = ("rank/", "ranks/", "load/", "progress/")
"""What the names of all series begin with."""
SAMPLES_TABLE = "samples"
IMAGES = "images"
"""The panel of images: for each of the first samples, its pictures, mask, result and ground truth side by side."""
POINTS_TABLE = "points"
"""The points of a sweep with their settings, quality and cost."""
RANKS_TABLE = "ranks"
RANKS_COLUMNS = ("rank", *PER_RANK)

Ranks = Mapping[int, Mapping[str, float | None]]
"""Figures by rank and by name in `PER_RANK`. None or missing: unknown."""


def series(ranks: Ranks, wall_s: float, session: Mapping[str, float | None] | None = None) -> dict[str, float]:
    """Return `rank/<r>/<figure>` for each figure in `PER_RANK`, the values of the whole `session`, and `wall_s`.

    `session` has the names above: `load/imbalance` and so on. With more than `MAX_RANKS` ranks,
    `ranks/<figure>/<quantile>` replaces `rank/<r>/<figure>`. Unknown values (missing, None or not finite) and figures
    with other names are left out.
    """
    own = _quantiles(ranks) if len(ranks) > MAX_RANKS else _of_each(ranks)
    whole = {name: _known(value) for name, value in (session or {}).items()}
    known = {name: value for name, value in {**own, **whole}.items() if value is not None}
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
        known = [value for figures in ranks.values() if (value := _known(figures.get(name))) is not None]
        if known:
            found = np.quantile(known, list(QUANTILES.values())).tolist()
            values |= {f"ranks/{name}/{label}": value for label, value in zip(QUANTILES, found, strict=True)}
    return values


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
