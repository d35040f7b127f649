"""Formats values for the page."""

from __future__ import annotations

import math
from typing import Any

DASH = "\u2013"
"""Shown for unknown values."""


def number(value: Any, digits: int = 3) -> str:
    """A number with `digits` significant digits, never in powers of ten where that is avoidable; a dash for none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def duration(seconds: Any) -> str:
    """Seconds in a readable unit."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return DASH
    if seconds < 100:
        return f"{number(float(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def percent(fraction: Any) -> str:
    """A fraction (0 to 1) as a whole percentage."""
    return (
        DASH
        if not isinstance(fraction, int | float) or not math.isfinite(fraction)
        else f"{fraction:.0%}".replace("%", " %")
    )


def setting(value: Any) -> str:
    """A config value as typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(values: dict[str, Any]) -> str:
    """A point's label: its settings, without the groups of their keys."""
    return " \u00b7 ".join(f"{short(name)}\u00a0{setting(value)}" for name, value in values.items())


def short(name: str) -> str:
    """`sampling.max_pixels` as `max pixels`; a group's own name where it stands for its choice."""
    group, _, last = name.rpartition(".")
    return (group if last in ("name", "kind") and group else last).replace("_", " ")
