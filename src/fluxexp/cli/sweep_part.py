"""Part I of K of a sweep: the points that one element of a job array makes (docs/nodes.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from fluxexp.errors import ConfigError, Problem

OPTION = "--part"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SweepPart:
    """Some points of a sweep. The parts 0 to `count` - 1 are disjoint, and all parts together have every point."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `I/K`.

        Raises:
            ConfigError: it is not a part.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            hint = "write I/K, with I from 0 to K-1"
            raise ConfigError(Problem(OPTION, "is not a part of a sweep", text, hint))
        return cls(int(match[1]), int(match[2]))

    def of(self, groups: Sequence[Sequence[T]], key: Callable[[T], Hashable]) -> list[list[T]]:
        """The items of this part. Items with equal keys are in the same part.

        Each row of `count` keys begins with another part. So a short axis of the sweep, such as few and many steps,
        does not give all expensive points to one part.
        """
        numbers: dict[Hashable, int] = {}
        return [[item for item in group if self._has(numbers.setdefault(key(item), len(numbers)))] for group in groups]

    def _has(self, number: int) -> bool:
        return (number + number // self.count) % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def refuse_part(part: object, *, is_pool: bool, is_search: bool, option: str = OPTION) -> None:
    """Refuse parts of a command that has no points, or whose points depend on each other.

    Args:
        part: the value of `option`; None if it was not given.
        is_pool, is_search: what the command is.
        option: how the user asked for parts.

    Raises:
        ConfigError: with the reason.
    """
    if part is None or (is_pool and not is_search):
        return
    if is_search:
        what = "is not possible for a search: its next point depends on the earlier ones"
    else:
        what = "needs a sweep: a run belongs to one session, which may have any number of nodes"
    raise ConfigError(Problem(option, what, str(part), f"remove {option}; or add -m and the values to sweep"))
