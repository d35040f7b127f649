"""Who makes which task: a rank works through its own share from the front, then helps the slowest from the back.

Everything is one atomic addition on a counter that all ranks share. There is no collective, no master and nothing to
wait for: a rank that is slow, late or gone just finds that others took from the back of its share. Knows no tasks, only
their positions and costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import Any, Literal, Protocol

WorkSchedule = Literal["static", "steal"]

_FRONT = (1 << 32) - 1
_CAREFUL = 4
"""A rank with fewer batches than this left of its own share looks at what all have left before it takes a whole one."""


_NEVER = 1e12
"""Pace of a rank that is gone."""


class CounterStore(Protocol):
    """What all ranks see: counters and values by key."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, atomically, and return its new value. One that nobody has touched is 0."""
        ...

    def publish(self, key: str, value: Any) -> None:
        """Set `key`."""
        ...

    def read_many(self, keys: Sequence[str]) -> list[Any]:
        """The values of keys that are all there, in one go."""
        ...


@dataclass(frozen=True, slots=True)
class TakenRange:
    """Positions `first` to `last` - 1 of rank `owner`'s share: this rank's to make, and nobody else's."""

    owner: int
    first: int
    last: int


class Shard:
    """One rank's share: positions 0 to `length` - 1, of which anybody takes from either end.

    One counter holds how many were asked for at the front (low 32 bits) and at the back (high bits). An addition
    returns both at one moment, so no position is ever given twice; asking for more than is left is harmless.
    """

    def __init__(self, board: CounterStore, key: str, length: int) -> None:
        self._board = board
        self.key = key
        self.length = length

    def take_front(self, wanted: int) -> range:
        """The next `wanted` positions, fewer or none where the share ends."""
        front, back = split(self._board.add(self.key, wanted))
        return range(front - wanted, max(front - wanted, min(front, self.length - back)))

    def take_back(self, wanted: int) -> range:
        """The last `wanted` positions that are left, fewer or none where there are no more."""
        front, back = split(self._board.add(self.key, wanted << 32))
        last = self.length - back + wanted
        return range(min(last, max(self.length - back, front)), last)

    def left(self, counter: int) -> range:
        """What nobody has taken when the counter stands at `counter`."""
        front, back = split(counter)
        return range(front, max(front, self.length - back))


def split(counter: int) -> tuple[int, int]:
    """How many were asked for at the front and at the back."""
    return counter & _FRONT, counter >> 32


class WorkSource:
    """One rank's way through the work of all.

    Args:
        board: shared by all ranks; `prepare` was called on it before.
        rank: this one.
        costs: of each position of each rank's share, in any unit, the same on every rank.
        schedule: static keeps to the own share.
        name: tells this work from other work on the same board.
    """

    def __init__(
        self,
        board: CounterStore,
        rank: int,
        costs: Sequence[Sequence[float]],
        schedule: WorkSchedule,
        name: str = "work",
    ) -> None:
        self._board = board
        self._rank = rank
        self._schedule = schedule
        self._shares = [Shard(board, f"{name}/{owner}", len(share)) for owner, share in enumerate(costs)]
        self._sums = [list(accumulate(share, initial=0.0)) for share in costs]
        self._pace_key = f"{name}/pace"
        self._front = 0
        self._own_left = len(costs[rank])
        self._seconds = self._cost = 0.0
        self.num_steals = 0
        self.num_stolen = 0

    @property
    def upcoming(self) -> range:
        """Positions of the own share that are probably next: to be read ahead, not to be counted on."""
        return range(self._front, self._front + self._own_left)

    def take(self, wanted: int) -> TakenRange | None:
        """Up to `wanted` neighbouring positions, of the own share or stolen; None when there is no more to do."""
        if self._own_left > 0:
            taken = self._shares[self._rank].take_front(self._fair(wanted))
            self._note(taken)
            if taken:
                return TakenRange(self._rank, taken.start, taken.stop)
        return self._steal(wanted) if self._schedule == "steal" else None

    def report(self, seconds: float, taken_cost: float) -> None:
        """Say that this rank worked `seconds` on tasks of `taken_cost` in all: thieves look for the slowest."""
        # Half of what is known is forgotten with each report, so that a device that slows down is seen to.
        self._seconds = 0.5 * self._seconds + seconds
        self._cost = 0.5 * self._cost + taken_cost
        if self._schedule == "steal" and self._pace:
            self._board.publish(f"{self._pace_key}/{self._rank}", self._pace)

    def give_up(self) -> None:
        """Say that this rank makes no more of its share: others take what is left, however slow they are."""
        if self._schedule == "steal":
            self._board.publish(f"{self._pace_key}/{self._rank}", _NEVER)

    def cost(self, taken: TakenRange) -> float:
        """Cost of what was taken."""
        sums = self._sums[taken.owner]
        return sums[taken.last] - sums[taken.first]

    @property
    def _pace(self) -> float | None:
        """Seconds for a unit of cost."""
        return self._seconds / self._cost if self._cost > 0 else None

    def _note(self, taken: range) -> None:
        """A shortened or empty answer means that the share is used up."""
        self._front = taken.stop
        self._own_left = max(0, len(self._sums[self._rank]) - 1 - self._front) if taken else 0

    def _fair(self, wanted: int) -> int:
        """How many to take of the own share: towards the end no more than this rank's part of what all have left."""
        if self._schedule == "static" or self._own_left > _CAREFUL * wanted or len(self._shares) == 1:
            return wanted
        left, paces = self._survey()
        self._own_left = len(left[self._rank])
        speeds = [1 / pace for pace in paces]
        part = sum(map(len, left)) * speeds[self._rank] / sum(speeds)
        return max(1, min(wanted, ceil(part / 2)))

    def _steal(self, wanted: int) -> TakenRange | None:
        """Take from whoever would be busy longest, if this rank would be done with it sooner."""
        while True:
            left, paces = self._survey()
            ahead = [paces[owner] * self._cost_of(owner, positions) for owner, positions in enumerate(left)]
            victim = max(range(len(ahead)), key=lambda owner: (ahead[owner], -owner))
            number = self._worth_taking(victim, left[victim], paces, wanted)
            if number == 0:
                return None
            taken = self._shares[victim].take_back(number)
            if taken:
                self.num_steals += 1
                self.num_stolen += len(taken)
                return TakenRange(victim, taken.start, taken.stop)
            # Somebody else was faster: look again. What is left only ever shrinks, so this ends.

    def _worth_taking(self, victim: int, left: range, paces: Sequence[float], wanted: int) -> int:
        """How many from the back of `left` this rank can make before the victim is through with the others."""
        if not left:
            return 0
        whole = self._cost_of(victim, left)
        last = left[-1:]
        if paces[self._rank] * self._cost_of(victim, last) > paces[victim] * whole:
            return 0
        number = 1
        while number < min(wanted, len(left)):
            cost = self._cost_of(victim, left[-number - 1 :])
            if paces[self._rank] * cost > paces[victim] * (whole - cost):
                break
            number += 1
        return number

    def _cost_of(self, owner: int, positions: range) -> float:
        sums = self._sums[owner]
        return sums[positions.stop] - sums[positions.start] if positions else 0.0

    def _survey(self) -> tuple[list[range], list[float]]:
        """What is left of every share, and every rank's pace: of those that have not said theirs, the others' mean."""
        owners = range(len(self._shares))
        keys = [*(share.key for share in self._shares), *(f"{self._pace_key}/{owner}" for owner in owners)]
        values = self._board.read_many(keys)
        counters, paces = values[: len(owners)], values[len(owners) :]
        paces[self._rank] = self._pace or paces[self._rank]
        known = [pace for pace in paces if pace and pace < _NEVER]
        usual = sum(known) / len(known) if known else 1.0
        left = [share.left(counter) for share, counter in zip(self._shares, counters, strict=True)]
        return left, [pace or usual for pace in paces]


def prepare(board: CounterStore, world_size: int, name: str = "work") -> None:
    """Set up the counters of `WorkSource`s called `name`; by one rank, before any uses them."""
    for owner in range(world_size):
        board.add(f"{name}/{owner}", 0)
        board.publish(f"{name}/pace/{owner}", None)
