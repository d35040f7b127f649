"""Formats values for the page."""

from __future__ import annotations

import math
from typing import Any

DASH = "\u2013"
"""Shown for unknown values."""


def number(value: Any, digits: int = 3) -> str:
    """`value` with at least `digits` significant digits; a dash if it is not a finite number.

    Only values below 0.0001 use exponents. Integers are exact, with commas between thousands.
    """
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
    """Seconds as text: seconds below 100 s, then minutes, and hours from 1 h on; a dash if unknown."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return DASH
    if seconds < 100:
        return f"{number(float(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def percent(fraction: Any) -> str:
    """A fraction (0 to 1) as a whole percentage; a dash if unknown."""
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
    """A point's label: short names and values of its settings, for example `steps 4 · guidance 30`."""
    return " \u00b7 ".join(f"{short(name)}\u00a0{setting(value)}" for name, value in values.items())


def short(name: str) -> str:
    """A short name of a config key: `max pixels` for `sampling.max_pixels`.

    A key that selects an option of a group, such as `scheduler.name`, gets the name of the group.
    """
    group, _, last = name.rpartition(".")
    return (group if last in ("name", "kind") and group else last).replace("_", " ")
