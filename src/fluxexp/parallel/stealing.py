"""Work stealing: each rank takes tasks from the front of its own shard, then from the back of the slowest rank's shard.

Each take is one atomic addition to a shared counter. There is no collective, no master and no wait. If a rank is slow,
late or dead, other ranks take from the back of its shard. This module handles positions and costs, not tasks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from fluxexp.config.schema import WorkSchedule
from fluxexp.parallel.coordinator import Coordinator

_FRONT = (1 << 32) - 1
_TRUSTED = 1 / 8
"""A rank reads the progress of all ranks again after it has taken this fraction of its fair part of the rest. So it
reads often only near the end."""
_NEVER = 1e12
"""Pace reported by a rank that has stopped, in seconds for a unit of cost."""


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """The coordinator's keys of the work queue `name`."""

    name: str

    def counter(self, owner: int) -> str:
        """Counter of the positions that were asked for in the shard of rank `owner`."""
        return f"{self.name}/{owner}"

    def pace(self, rank: int) -> str:
        """Seconds that rank `rank` needs for a unit of cost."""
        return f"{self.name}/pace/{rank}"


@dataclass(frozen=True, slots=True)
class TakenRange:
    """Positions `first` to `last` - 1 of the shard of rank `owner`. Only the rank that took them works on them."""

    owner: int
    first: int
    last: int


class Shard:
    """One rank's shard: positions 0 to `length` - 1. Any rank can take from either end.

    One counter holds the number of positions requested at the front (low 32 bits) and at the back (high bits). One
    addition returns both numbers, so no position is given twice. A request for more than is left is harmless.
    """

    def __init__(self, coordinator: Coordinator, key: str, length: int) -> None:
        self._coordinator = coordinator
        self.key = key
        self.length = length

    def take_front(self, wanted: int) -> range:
        """Take the next `wanted` positions; fewer or none at the end of the shard."""
        front, back = split(self._coordinator.add(self.key, wanted))
        return range(front - wanted, max(front - wanted, min(front, self.length - back)))

    def take_back(self, wanted: int) -> range:
        """Take the last `wanted` positions that are left; fewer or none if fewer are left."""
        front, back = split(self._coordinator.add(self.key, wanted << 32))
        last = self.length - back + wanted
        return range(min(last, max(self.length - back, front)), last)

    def left(self, counter: int) -> range:
        """The positions that no rank has taken, given the counter's value."""
        front, back = split(counter)
        return range(front, max(front, self.length - back))


def split(counter: int) -> tuple[int, int]:
    """Number of positions requested at the front and at the back."""
    return counter & _FRONT, counter >> 32


class WorkSource:
    """One rank's view of the work queue of all ranks.

    Args:
        coordinator: shared by all ranks; `prepare_queue` was called on it before.
        rank: this rank.
        costs: for each rank, the cost of each position of its shard. In any unit, but the same values on every rank.
        schedule: `static` takes from this rank's own shard only; `steal` also helps the slowest rank.
        name: of the work queue.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        rank: int,
        costs: Sequence[Sequence[float]],
        schedule: WorkSchedule,
        name: str = "work",
    ) -> None:
        self._coordinator = coordinator
        self._rank = rank
        self._schedule = schedule
        self._keys = QueueKeys(name)
        self._shards = [Shard(coordinator, self._keys.counter(owner), len(shard)) for owner, shard in enumerate(costs)]
        self._sums = [array("d", accumulate(shard, initial=0.0)) for shard in costs]
        self._front = 0
        self._own_left = len(costs[rank])
        self._seconds = self._cost = 0.0
        self._trusted = 0.0
        """Cost that this rank may still take from its shard before it reads the progress of all ranks again."""
        self.num_steals = 0
        self.num_stolen = 0

    @property
    def upcoming(self) -> range:
        """Positions of the own shard that this rank will probably take next. A hint: others may take them."""
        return range(self._front, self._front + self._own_left)

    def take(self, wanted: int) -> TakenRange | None:
        """Take up to `wanted` consecutive positions, from the own shard or stolen; None if there is no more work."""
        if self._own_left > 0:
            taken = self._shards[self._rank].take_front(self._limit_near_end(wanted))
            self._update_own_left(taken)
            if taken:
                return TakenRange(self._rank, taken.start, taken.stop)
        return self._steal(wanted) if self._schedule == "steal" else None

    def report(self, seconds: float, taken_cost: float) -> None:
        """Report that tasks of total cost `taken_cost` took `seconds`. Others find the slowest rank by this."""
        # Each report halves the weight of older ones, so that a device that slows down is noticed.
        self._seconds = 0.5 * self._seconds + seconds
        self._cost = 0.5 * self._cost + taken_cost
        if self._schedule == "steal" and self._pace:
            self._coordinator.put(self._keys.pace(self._rank), self._pace)

    def give_up(self) -> None:
        """Report that this rank stops. Other ranks take the rest of its shard, however slow they are."""
        if self._schedule == "steal":
            self._coordinator.put(self._keys.pace(self._rank), _NEVER)

    def cost(self, taken: TakenRange) -> float:
        """Total cost of the taken positions."""
        sums = self._sums[taken.owner]
        return sums[taken.last] - sums[taken.first]

    @property
    def _pace(self) -> float | None:
        """Seconds for a unit of cost."""
        return self._seconds / self._cost if self._cost > 0 else None

    def _update_own_left(self, taken: range) -> None:
        """Update the estimate of what is left. An empty take means that the shard is used up."""
        self._front = taken.stop
        self._own_left = max(0, len(self._sums[self._rank]) - 1 - self._front) if taken else 0

    def _limit_near_end(self, wanted: int) -> int:
        """Positions to take from the own shard: `wanted`, but at most about half of this rank's fair part of the rest.

        A rank cannot give back what it took. So a slow rank must not take a costly batch when the others are nearly
        done, even if much of its own shard seems to be left: others may have taken it.
        """
        if self._schedule == "static" or len(self._shards) == 1:
            return wanted
        self._trusted -= self._cost_of(self._rank, self.upcoming[:wanted])
        if self._trusted >= 0:
            return wanted
        left, paces = self._read_progress()
        own = left[self._rank]
        self._front, self._own_left = own.start, len(own)
        speeds = [1 / pace for pace in paces]
        part = sum(map(self._cost_of, range(len(left)), left)) * speeds[self._rank] / sum(speeds)
        number = 1
        while number < min(wanted, len(own)) and self._cost_of(self._rank, own[:number]) < part / 2:
            number += 1
        self._trusted = _TRUSTED * part - self._cost_of(self._rank, own[:number])
        return number

    def num_left(self) -> int:
        """Positions of all shards that no rank has taken yet."""
        left, _ = self._read_progress()
        return sum(map(len, left))

    def _steal(self, wanted: int) -> TakenRange | None:
        """Take from the rank that would be busy longest, if this rank would finish the work sooner."""
        while True:
            left, paces = self._read_progress()
            ahead = [paces[owner] * self._cost_of(owner, positions) for owner, positions in enumerate(left)]
            victim = max(range(len(ahead)), key=lambda owner: (ahead[owner], -owner))
            number = self._worth_taking(victim, left[victim], paces, wanted)
            if number == 0:
                return None
            taken = self._shards[victim].take_back(number)
            if taken:
                self.num_steals += 1
                self.num_stolen += len(taken)
                return TakenRange(victim, taken.start, taken.stop)
            # Another rank took it first, so look again. This loop ends, because the remaining work only decreases.

    def _worth_taking(self, victim: int, left: range, paces: Sequence[float], wanted: int) -> int:
        """Positions at the back of `left` that this rank can finish before the victim finishes the others."""
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

    def _read_progress(self) -> tuple[list[range], list[float]]:
        """The rest of each shard, and the pace of each rank: the mean of the others if it has not reported."""
        owners = range(len(self._shards))
        keys = [*(shard.key for shard in self._shards), *(self._keys.pace(owner) for owner in owners)]
        values = self._coordinator.get_many(keys)
        counters, paces = values[: len(owners)], values[len(owners) :]
        paces[self._rank] = self._pace or paces[self._rank]
        known = [pace for pace in paces if pace and pace < _NEVER]
        usual = sum(known) / len(known) if known else 1.0
        left = [shard.left(counter) for shard, counter in zip(self._shards, counters, strict=True)]
        return left, [pace or usual for pace in paces]


def prepare_queue(coordinator: Coordinator, world_size: int, name: str = "work") -> None:
    """Create the counters of the work queue `name`. One rank calls it before any rank uses the queue."""
    keys = QueueKeys(name)
    for owner in range(world_size):
        coordinator.add(keys.counter(owner), 0)
        coordinator.put(keys.pace(owner), None)
