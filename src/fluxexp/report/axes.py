"""What a sweep varies, as axes of plots: which of its settings go across and which down, and their levels in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.report.wording import setting, short

_ACROSS_FIRST = ("sampling.steps", "steps")


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting, and the values it takes."""

    name: str
    levels: Sequence[str]
    """As they are typed, numbers in their order."""
    is_number: bool

    @property
    def title(self) -> str:
        """What it is called on the page."""
        text = short(self.name)
        return text[:1].upper() + text[1:]


@dataclass(frozen=True, slots=True)
class Axes:
    """The two settings by which points are laid out, and those that vary besides."""

    first: Axis
    second: Axis | None
    others: Sequence[Axis]

    @property
    def names(self) -> set[str]:
        """Of the two."""
        return {self.first.name} | ({self.second.name} if self.second else set())


def axes_of(settings: Sequence[Mapping[str, Any]]) -> Axes | None:
    """The axes of points with these settings: steps across if they vary, else the numbers with most levels first."""
    names = list(dict.fromkeys(name for values in settings for name in values))
    found = [_axis(name, [values[name] for values in settings if name in values]) for name in names]
    varied = [axis for axis in found if len(axis.levels) > 1]
    if not varied:
        return None
    ranked = sorted(varied, key=lambda axis: (axis.name not in _ACROSS_FIRST, not axis.is_number, -len(axis.levels)))
    return Axes(ranked[0], ranked[1] if len(ranked) > 1 else None, ranked[2:])


def _axis(name: str, values: Sequence[Any]) -> Axis:
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if is_number:
        return Axis(name, list(dict.fromkeys(setting(value) for value in sorted(values))), True)
    return Axis(name, list(dict.fromkeys(setting(value) for value in values)), False)
