"""Converts Altair charts to the JSON values that the page's scripts draw."""

from __future__ import annotations

from typing import Any


def spec(chart: Any, description: str) -> dict[str, Any]:
    """A chart as a Vega-Lite specification. `description` is the text that screen readers read.

    It leaves out Altair's default config, because the page sets its own (`chartConfig` in assets/charts.js).
    """
    values: dict[str, Any] = chart.properties(description=description).to_dict()
    values.pop("config", None)
    return values
