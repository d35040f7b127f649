"""Chunks: tasks for minutes of work that one worker is given at once, for engines in which workers pull their work.

A worker asks for its next chunk shortly before it has made the last one. The length of a chunk is `chunk_s` of work at
the worker's own pace, so a fast worker gets more tasks, and at most a part of the worker's fair part of the rest, so
chunks become smaller at the end. What a lost worker had goes back to its pile, and is given out first.

This module handles positions and costs, not tasks, and has no clock, no threads and no messages.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil

_FAIR_PART = 1 / 2
"""A chunk is at most this part of the fair part of the rest that its worker should make."""
_TRIAL_PART = 1 / 8
"""A chunk for a worker whose pace is not known is this part of `chunk_s` at the usual pace."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tasks that one worker is given at once."""

    number: int
    """Different for each chunk of a session."""
    group: int
    """Number of the group of runs, which share a model."""
    positions: Sequence[int]
    """In the pile of the group."""
    is_alone: bool = False
    """Whether its one task may have ended a process, so that the worker makes nothing else meanwhile."""


class Pile:
    """The tasks of one group that no worker has: those never given out, and those that came back.

    Args:
        costs: of each position, in any unit.
        batch_size: number of tasks that keep a device busy.
        alone: positions that are given out one at a time, before all others.
    """

    def __init__(self, costs: Sequence[float], batch_size: int, alone: Collection[int] = ()) -> None:
        self._sums = array("d", accumulate(costs, initial=0.0))
        self._batch_size = max(1, batch_size)
        self._front = 0
        self._end = len(costs) - len(alone)
        if sorted(alone) != list(range(self._end, len(costs))):
            raise ValueError("the positions of `alone` must be the last ones")
        self._alone = deque(range(self._end, len(costs)))
        self._returned: deque[int] = deque()
        self.left_cost = self._sums[-1]
        """Cost of all tasks of the pile."""

    def __len__(self) -> int:
        return self._end - self._front + len(self._returned) + len(self._alone)

    def cost(self, positions: Sequence[int]) -> float:
        """Total cost of positions."""
        if isinstance(positions, range):
            return self._sums[positions.stop] - self._sums[positions.start]
        return sum(self._sums[position + 1] - self._sums[position] for position in positions)

    def take(self, cost: float | None, num_workers: int) -> tuple[Sequence[int], bool]:
        """Take positions of about `cost`, but no less than a batch; or one position that must be made alone.

        Args:
            cost: None for a batch.
            num_workers: workers that want tasks. If fewer than a batch for each of them are left, they share the rest.

        Returns:
            the positions, and whether they must be made alone.
        """
        if self._alone:
            positions: Sequence[int] = [self._alone.popleft()]
            self.left_cost -= self.cost(positions)
            return positions, True
        least = max(1, min(self._batch_size, ceil(len(self) / max(1, num_workers))))
        if self._returned:
            positions = self._take_returned(cost, least)
        else:
            stop = self._front + least
            if cost is not None:
                stop = max(stop, bisect_left(self._sums, self._sums[self._front] + cost, self._front, self._end))
            positions = range(self._front, min(stop, self._end))
            self._front = positions.stop
        self.left_cost = max(0.0, self.left_cost - self.cost(positions))
        return positions, False

    def _take_returned(self, cost: float | None, least: int) -> list[int]:
        positions: list[int] = []
        taken_cost = 0.0
        while self._returned and (len(positions) < least or (cost is not None and taken_cost < cost)):
            positions.append(self._returned.popleft())
            taken_cost += self.cost(positions[-1:])
        return positions

    def give_back(self, positions: Sequence[int], alone: Collection[int] = ()) -> None:
        """Put positions back that a worker has not made. Those of `alone` are then given out one at a time."""
        self._returned.extend(position for position in positions if position not in alone)
        self._alone.extend(alone)
        self.left_cost += self.cost([*(p for p in positions if p not in alone), *alone])


@dataclass(slots=True)
class _Worker:
    """What is known of one worker."""

    group: int | None = None
    """The group whose model it has loaded, or loads."""
    pace: float | None = None
    """Seconds for a unit of cost."""
    chunks: dict[int, Chunk] = field(default_factory=dict)
    """Those that it has, by number."""
    refused: set[int] = field(default_factory=set)
    """Groups that it cannot work on."""


class ChunkDealer:
    """Deals the chunks of all groups to workers, which may come and go.

    Args:
        piles: one for each group.
        chunk_s: seconds of work of a chunk.
    """

    def __init__(self, piles: Sequence[Pile], chunk_s: float) -> None:
        self._piles = piles
        self._chunk_s = chunk_s
        self._workers: dict[Hashable, _Worker] = {}
        self._number = 0
        self._speed = 0.0
        """Sum of the speeds of all workers whose pace is known, in cost per second."""
        self._num_known = 0

    def join(self, worker: Hashable) -> None:
        """A new worker."""
        self._workers[worker] = _Worker()

    def group_for(self, worker: Hashable) -> int | None:
        """The group that a worker should work on next; None if no group has tasks for it. It loads the model then.

        It stays with its group as long as that has tasks. Then it goes where most work is left for each worker.
        """
        own = self._workers[worker]
        if own.group is not None and own.group not in own.refused and len(self._piles[own.group]):
            return own.group
        crowds = [0] * len(self._piles)
        for other in self._workers.values():
            if other is not own and other.group is not None:
                crowds[other.group] += 1
        open_groups = [number for number, pile in enumerate(self._piles) if len(pile) and number not in own.refused]
        if not open_groups:
            return None
        own.group = max(open_groups, key=lambda number: (self._piles[number].left_cost / (1 + crowds[number]), -number))
        return own.group

    def deal(self, worker: Hashable) -> Chunk | None:
        """The next chunk of the worker's group; None if the group has no tasks left."""
        own = self._workers[worker]
        if own.group is None or own.group in own.refused or not len(pile := self._piles[own.group]):
            return None
        positions, is_alone = pile.take(self._target_cost(own, pile), len(self._workers))
        chunk = Chunk(self._number, own.group, positions, is_alone)
        self._number += 1
        own.chunks[chunk.number] = chunk
        return chunk

    def _target_cost(self, own: _Worker, pile: Pile) -> float | None:
        if not self._num_known:
            return None
        usual = self._speed / self._num_known
        speed, most_s = (usual, self._chunk_s * _TRIAL_PART) if own.pace is None else (1 / own.pace, self._chunk_s)
        everyone = usual * len(self._workers)
        return min(speed * most_s, _FAIR_PART * pile.left_cost * speed / everyone)

    def note_pace(self, worker: Hashable, pace: float) -> None:
        """Note how many seconds a unit of cost takes on a worker."""
        own = self._workers[worker]
        self._forget_pace(own)
        own.pace = pace
        self._speed += 1 / pace
        self._num_known += 1

    def _forget_pace(self, own: _Worker) -> None:
        if own.pace is not None:
            self._speed -= 1 / own.pace
            self._num_known -= 1
            own.pace = None

    def finish(self, worker: Hashable, number: int) -> None:
        """A worker has made a chunk: each of its tasks has a record."""
        self._workers[worker].chunks.pop(number, None)

    def refuse(self, worker: Hashable, group: int) -> list[Chunk]:
        """A worker cannot work on a group. Returns the chunks that it had of it."""
        own = self._workers[worker]
        own.refused.add(group)
        chunks = [chunk for chunk in own.chunks.values() if chunk.group == group]
        for chunk in chunks:
            del own.chunks[chunk.number]
        return chunks

    def refuses_all(self, worker: Hashable) -> bool:
        """Whether a worker can work on no group."""
        return len(self._workers[worker].refused) == len(self._piles)

    def leave(self, worker: Hashable) -> list[Chunk]:
        """A worker has ended or is lost. Returns the chunks that it had."""
        own = self._workers.pop(worker)
        self._forget_pace(own)
        return list(own.chunks.values())

    def give_back(self, chunk: Chunk, positions: Sequence[int], alone: Collection[int] = ()) -> None:
        """Give back those positions of a chunk that have no result, to be dealt again."""
        self._piles[chunk.group].give_back(positions, alone)

    @property
    def num_left(self) -> int:
        """Tasks that no worker has."""
        return sum(map(len, self._piles))

    @property
    def is_working(self) -> bool:
        """Whether a worker has a chunk."""
        return any(worker.chunks for worker in self._workers.values())
