"""The part of a run's summary that goes to W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUALITY = "quality"
"""Name of the mean score of the judging metric, the same for all runs, so that W&B can plot runs by it."""
COST = "cost.device_s_per_image"
"""Name of the cost in the summary; W&B joins nested keys by a dot."""
_LEFT_OUT = ("versions", "tracking", "version", "points", "comparisons")


def summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return `summary` without keys that W&B does not need, and with `quality`."""
    values = {name: value for name, value in summary.items() if name not in _LEFT_OUT}
    score = summary.get("scores", {}).get(summary.get("judged_by"))
    return values if score is None or "mean" not in score else {**values, QUALITY: score["mean"]}
