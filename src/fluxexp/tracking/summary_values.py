"""What of a run's summary W&B is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUALITY = "quality"
"""The mean score of the metric that the run is judged by: one number, under one name, to plot runs by."""
COST = "cost.device_s_per_image"
"""Of the summary, as W&B names what is nested."""
_NOT_TOLD = ("versions", "tracking", "version")


def summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """`summary`, without what W&B knows by itself, and `quality`."""
    values = {name: value for name, value in summary.items() if name not in _NOT_TOLD}
    score = summary.get("scores", {}).get(summary.get("judged_by"))
    return values if score is None else {**values, QUALITY: score["mean"]}
