"""Altair charts as the plain values that a page's scripts draw."""

from __future__ import annotations

from typing import Any


def spec(chart: Any, description: str) -> dict[str, Any]:
    """A chart as Vega-Lite, without Altair's own config. `description` is for those who cannot see it."""
    values: dict[str, Any] = chart.properties(description=description).to_dict()
    values.pop("config", None)
    return values
