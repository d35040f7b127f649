"""The tasks of a single run, in the form of a pool of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload


class SingleRunTasks(Sequence[tuple[int, int]]):
    """The tasks of a single run, as (0, number). It needs no memory besides `numbers`."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, place: slice) -> SingleRunTasks: ...
    def __getitem__(self, place: int | slice) -> tuple[int, int] | SingleRunTasks:
        if isinstance(place, slice):
            return self if place == slice(None) else SingleRunTasks(self._numbers[place])
        return 0, self._numbers[place]
