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

    def index(self, settings: Mapping[str, Any]) -> int:
        """The index of the level that `settings` have; the number of levels if they have none."""
        level = setting(settings[self.name]) if self.name in settings else None
        return self.levels.index(level) if level in self.levels else len(self.levels)


@dataclass(frozen=True, slots=True)
class Axes:
    """The two settings that plots use as axes, and the other settings that vary."""

    first: Axis
    second: Axis | None
    others: Sequence[Axis]

    @property
    def all(self) -> list[Axis]:
        """The first and second axis, then the others."""
        return [self.first, *([self.second] if self.second else []), *self.others]

    @property
    def names(self) -> set[str]:
        """Names of the first and second axis."""
        return {self.first.name} | ({self.second.name} if self.second else set())

    def place(self, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """The index of these settings in the levels of each axis; the number of levels if a setting is unknown."""
        return tuple(axis.index(settings) for axis in self.all)


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
