"""Names of the series in W&B, each against `wall_s`, the seconds since the run began."""

from __future__ import annotations

import math
from collections.abc import Mapping

PER_RANK = ("images_per_s", "busy", "utilisation", "memory_gib", "images")
"""`busy` and `utilisation` are shares in 0..1, `images` counts since the start of the session."""


def series(
    ranks: Mapping[int, Mapping[str, float | None]], wall_s: float, imbalance: float | None = None
) -> dict[str, float]:
    """`rank/<r>/<figure>` for each figure in `PER_RANK`, `load/imbalance`, and `wall_s`.

    What is unknown, missing, None or not finite, is left out; figures of other names are not W&B's business.
    """
    values = {f"rank/{rank}/{name}": figures.get(name) for rank, figures in ranks.items() for name in PER_RANK}
    values["load/imbalance"] = imbalance
    known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return {**known, "wall_s": wall_s}
