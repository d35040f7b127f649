"""The task supply of a worker that is given its tasks in chunks. One thread works on them, and another one talks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from fluxexp.experiment.engine.worker_messages import Instruction, TaskChunk
from fluxexp.experiment.task_supply import GroupTasks
from fluxexp.plan import Plan
from fluxexp.worker import Assignment, WorkOrder

_POLL_S = 0.5
_PATIENCE_S = 0.2
"""How long a worker waits for its next chunk before it makes an incomplete batch, or ends its loop."""
_LEAD_S = 5.0
"""A worker wants its next chunk when it has less than this left, in seconds of work."""


@dataclass(frozen=True, slots=True)
class SupplyNews:
    """What a worker has to report."""

    finished: tuple[int, ...]
    """Numbers of chunks of which each task has a record."""
    runs: Collection[int]
    """Numbers of their runs."""
    refused: Collection[int]
    """Groups whose work has failed."""
    pace: float | None
    """Seconds for a unit of cost; None if it is not new."""


class ChunkSupply:
    """See `TaskSupply`. Another thread passes instructions, and reads what to report. All methods are thread-safe.

    Args:
        orders: of the runs of the session.
        plans: of the same runs.
        groups: numbers of the runs of each group.
        touch: called while the worker waits for tasks.
        announce: receives the number of each group before the work on it; None when there is no more work.
    """

    def __init__(
        self,
        orders: Sequence[WorkOrder],
        plans: Sequence[Plan],
        groups: Sequence[Sequence[int]],
        touch: Callable[[], None],
        announce: Callable[[int | None], None] = lambda _: None,
    ) -> None:
        self._orders = orders
        self._groups = groups
        self._plans = plans
        self._touch = touch
        self._announce = announce
        self._turn = 0
        self._changed = threading.Condition()
        self._group: int | None = None
        """The group whose model should be loaded."""
        self._loaded: int | None = None
        self._is_over = False
        self._untaken: deque[tuple[TaskChunk, int]] = deque()
        """Tasks that the worker has not begun: (chunk, index in it)."""
        self._unfinished: dict[int, set[tuple[int, str]]] = {}
        """For each chunk, the (number of the run, task key) of those that have no record."""
        self._chunk_of: dict[tuple[int, str], int] = {}
        """Of each task that has no record."""
        self._cost_of: dict[tuple[int, str], float] = {}
        """Of each task whose time is not reported. A task may be recorded before or after that."""
        self._runs_of: dict[int, set[int]] = {}
        """Numbers of the runs of each chunk that is not reported as finished."""
        self._finished: list[int] = []
        self._refused: set[int] = set()
        self._seconds = self._cost = 0.0
        self._has_new_pace = False
        self._news = 0

    # The thread that talks.

    def follow(self, instruction: Instruction) -> None:
        """Take what an instruction gives."""
        with self._changed:
            if instruction.group is not None:
                self._group = instruction.group
            if (chunk := instruction.chunk) is not None:
                tasks = [(run, self._plans[run].task_key(number)) for run, number in chunk.tasks]
                self._unfinished[chunk.number] = set(tasks)
                self._runs_of[chunk.number] = {run for run, _ in chunk.tasks}
                self._chunk_of |= dict.fromkeys(tasks, chunk.number)
                self._cost_of |= dict(zip(tasks, chunk.costs, strict=True))
                self._untaken.extend((chunk, index) for index in range(len(tasks)))
            self._is_over |= instruction.is_end or instruction.stop is not None
            self._changed.notify_all()

    def wait_for_news(self, seen: int, timeout_s: float) -> int:
        """Wait until there is something to report that is newer than `seen`. Returns the number of the latest news."""
        with self._changed:
            self._changed.wait_for(lambda: self._news > seen, timeout_s)
            return self._news

    def note_end(self) -> None:
        """The work has ended, which is news."""
        with self._changed:
            self._is_over = True
            self._tell()

    @property
    def is_idle(self) -> bool:
        """Whether the worker has no tasks, and does not load a model."""
        with self._changed:
            return not self._is_over and not self._unfinished and self._loaded == self._group

    @property
    def wants_chunk(self) -> bool:
        """Whether the model is loaded, and few tasks are left."""
        with self._changed:
            return self._wants_chunk()

    def take_news(self) -> SupplyNews:
        """What is new since the last call."""
        with self._changed:
            finished, self._finished = tuple(self._finished), []
            runs = frozenset(run for chunk in finished for run in self._runs_of.pop(chunk))
            refused, self._refused = frozenset(self._refused), set()
            pace = self._pace if self._has_new_pace else None
            self._has_new_pace = False
        return SupplyNews(finished, runs, refused, pace)

    # The thread that works.

    def groups(self) -> Iterator[int]:
        """See `TaskSupply`: the groups that the instructions name."""
        while True:
            with self._changed:
                while not self._is_over and (self._group is None or self._is_waiting()):
                    self._changed.wait(_POLL_S)
                    self._touch()
                group = None if self._is_over else self._group
            self._announce(group)
            if group is None:
                return
            yield group
            self._turn += 1
            self._end_of(group)

    def tasks(self, number: int) -> GroupTasks:
        """See `TaskSupply`."""
        return GroupTasks(ChunkQueue(self, number), self._alone(number), turn=self._turn)

    def count(self, number: int, key: str) -> None:
        """A task has a record."""
        with self._changed:
            chunk = self._chunk_of.pop((number, key), None)
            if chunk is None or chunk not in self._unfinished:
                return
            left = self._unfinished[chunk]
            left.discard((number, key))
            if not left:
                del self._unfinished[chunk]
                self._finished.append(chunk)
                self._tell()

    def upcoming(self, number: int, group: int) -> list[Assignment]:
        """The next tasks of a group, without those that must be made alone."""
        found: list[Assignment] = []
        with self._changed:
            for chunk, index in self._untaken:
                if len(found) == number or chunk.group != group or chunk.is_alone:
                    break
                found.append(self._assignment(chunk, index))
        return found

    def take(self, wanted: int, group: int, *, is_alone: bool) -> list[Assignment]:
        """Take up to `wanted` tasks of a group. Waits a moment if there are none."""
        with self._changed:
            self._note_loaded(group)
            if not self._untaken and not self._is_over:
                self._changed.wait_for(lambda: self._untaken or self._is_over, _PATIENCE_S)
            taken: list[Assignment] = []
            while len(taken) < wanted and self._untaken and not self._is_over:
                chunk, index = self._untaken[0]
                if chunk.group != group or chunk.is_alone is not is_alone:
                    break
                self._untaken.popleft()
                taken.append(self._assignment(chunk, index))
            if self._wants_chunk():
                self._tell()
            return taken

    def report_pace(self, seconds: float, tasks: Sequence[tuple[int, str]]) -> None:
        """Tasks took `seconds` together. Each report halves the weight of older ones."""
        with self._changed:
            cost = sum(self._cost_of.pop(task, 0.0) for task in tasks)
            if cost and seconds > 0:
                self._seconds, self._cost = 0.5 * self._seconds + seconds, 0.5 * self._cost + cost
                self._has_new_pace = True
                if self._wants_chunk():
                    self._tell()

    def orders_of(self, group: int) -> list[WorkOrder]:
        """The runs of a group."""
        return [self._orders[number] for number in self._groups[group]]

    def _alone(self, group: int) -> Iterator[Assignment]:
        while taken := self.take(1, group, is_alone=True):
            yield from taken

    def _assignment(self, chunk: TaskChunk, index: int) -> Assignment:
        run, number = chunk.tasks[index]
        return Assignment(self._orders[run], self._plans[run].task(number))

    def _note_loaded(self, group: int) -> None:
        if self._loaded != group:
            self._loaded = group
            self._tell()

    def _end_of(self, group: int) -> None:
        """The work on a group has ended. Unless it waits for its next chunk, it has failed."""
        with self._changed:
            if self._is_over:
                return
            left = {task for tasks in self._unfinished.values() for task in tasks}
            left -= {self._key(chunk, index) for chunk, index in self._untaken}
            if left or self._loaded != group:
                self._refuse(group)

    def _refuse(self, group: int) -> None:
        self._refused.add(group)
        self._unfinished.clear()
        self._chunk_of.clear()
        self._cost_of.clear()
        self._untaken.clear()
        self._group = self._loaded = None
        self._tell()

    def _key(self, chunk: TaskChunk, index: int) -> tuple[int, str]:
        run, number = chunk.tasks[index]
        return run, self._plans[run].task_key(number)

    def _is_waiting(self) -> bool:
        """Whether the worker has loaded the model of its group, and has no tasks to begin."""
        return self._loaded == self._group and not self._untaken

    def _wants_chunk(self) -> bool:
        if self._is_over or self._loaded is None or self._loaded != self._group:
            return False
        if self._pace is None:
            return not self._untaken
        return self._pace * sum(chunk.costs[index] for chunk, index in self._untaken) < _LEAD_S

    @property
    def _pace(self) -> float | None:
        return self._seconds / self._cost if self._cost else None

    def _tell(self) -> None:
        self._news += 1
        self._changed.notify_all()


class ChunkQueue:
    """See `RankQueue`: the tasks of one group that a worker has been given."""

    num_stolen = 0

    def __init__(self, supply: ChunkSupply, group: int) -> None:
        self._supply = supply
        self._group = group

    @property
    def orders(self) -> Sequence[WorkOrder]:
        """See `Queue`: the runs of the group."""
        return self._supply.orders_of(self._group)

    def upcoming(self, number: int) -> Sequence[Assignment]:
        """See `Queue`."""
        return self._supply.upcoming(number, self._group)

    def take(self, wanted: int) -> Sequence[Assignment]:
        """See `Queue`."""
        return self._supply.take(wanted, self._group, is_alone=False)

    def report(self, seconds: float, made: Sequence[Assignment]) -> None:
        """See `Queue`."""
        self._supply.report_pace(seconds, [(item.order.number, item.task.key) for item in made])

    def give_up(self) -> None:
        """See `RankQueue`: `ChunkSupply` finds it out by itself."""
