"""Assigns the settings that a sweep varies to the axes of its plots, with the values of each setting in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.report.wording import setting, short

_PREFERRED_FIRST = ("sampling.steps", "steps")
"""If one of these settings varies, it is the first (horizontal) axis."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting, and the values that it has in the sweep."""

    name: str
    levels: Sequence[str]
    """The values as typed on the command line. Numbers are sorted; other values keep their order in the sweep."""
    is_number: bool

    @property
    def title(self) -> str:
        """Title of the axis on the page."""
        text = short(self.name)
        return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class Axes:
    """The two settings that plots use as axes, and the other settings that vary."""

    first: Axis
    second: Axis | None
    others: Sequence[Axis]

    @property
    def names(self) -> set[str]:
        """Names of the first and second axis."""
        return {self.first.name} | ({self.second.name} if self.second else set())


def axes_of(settings: Sequence[Mapping[str, Any]]) -> Axes | None:
    """The axes of points with these settings, or None if no setting varies.

    Steps come first if they vary, then numbers, then other settings. Settings with more levels come before others.
    """
    names = list(dict.fromkeys(name for values in settings for name in values))
    found = [_axis(name, [values[name] for values in settings if name in values]) for name in names]
    varied = [axis for axis in found if len(axis.levels) > 1]
    if not varied:
        return None
    ranked = sorted(varied, key=lambda axis: (axis.name not in _PREFERRED_FIRST, not axis.is_number, -len(axis.levels)))
    return Axes(ranked[0], ranked[1] if len(ranked) > 1 else None, ranked[2:])


def _axis(name: str, values: Sequence[Any]) -> Axis:
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if is_number:
        return Axis(name, list(dict.fromkeys(setting(value) for value in sorted(values))), True)
    return Axis(name, list(dict.fromkeys(setting(value) for value in values)), False)
