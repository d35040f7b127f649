"""Rules for config values, as part of the type: `Annotated[int, Range(1)]`.

`build` checks each rule. If a value violates it, the error message quotes the rule's text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol


class Rule(Protocol):
    """A condition on one value."""

    def violation(self, value: object) -> str | None:
        """Say what is wrong with `value`, as the end of a sentence; None if it is allowed."""
        ...


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included. None: no limit on this side."""

    low: float | None = None
    high: float | None = None

    def violation(self, value: object) -> str | None:
        """See `Rule`."""
        assert isinstance(value, (int, float))
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            return f"must be {self}"
        return None

    def __str__(self) -> str:
        if self.high is None:
            return f"at least {self.low:g}"
        if self.low is None:
            return f"at most {self.high:g}"
        return f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class Above:
    """A number strictly greater than `low`."""

    low: float

    def violation(self, value: object) -> str | None:
        """See `Rule`."""
        assert isinstance(value, (int, float))
        return None if value > self.low and math.isfinite(value) else f"must be a number above {self.low:g}"


@dataclass(frozen=True)
class MultipleOf:
    """An integer that is a multiple of `base`."""

    base: int

    def violation(self, value: object) -> str | None:
        """See `Rule`."""
        assert isinstance(value, int)
        if value % self.base == 0:
            return None
        below = value // self.base * self.base
        near = [str(n) for n in (below, below + self.base) if n > 0]
        return f"must be a multiple of {self.base} (nearest: {' or '.join(near)})"


@dataclass(frozen=True)
class OneOf:
    """One of `names`, for names that a table declares. `build` treats it like a `Literal`: its error suggests the most
    similar name."""

    names: tuple[str, ...]

    def violation(self, value: object) -> str | None:
        """See `Rule`."""
        return None if value in self.names else f"must be one of {', '.join(self.names)}"


@dataclass(frozen=True)
class Matches:
    """A string that matches the whole `pattern`. `meaning` describes it in words, for the error."""

    pattern: str
    meaning: str

    def violation(self, value: object) -> str | None:
        """See `Rule`."""
        assert isinstance(value, str)
        return None if re.fullmatch(self.pattern, value) else f"must be {self.meaning}"
