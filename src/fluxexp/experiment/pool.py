"""The pool of the tasks of all runs that share a model: their order, their shards and their costs."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil

from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES
from fluxexp.config.schema import ParallelismMode
from fluxexp.data import working_size
from fluxexp.experiment.interleaving import interleaved
from fluxexp.experiment.single_run_tasks import SingleRunTasks
from fluxexp.experiment.task_kinds import TaskKinds, has_one_kind
from fluxexp.parallel.batching import full_batch_size
from fluxexp.parallel.coordinator import Coordinator
from fluxexp.parallel.sharding import contiguous_shards
from fluxexp.parallel.stealing import WorkSource
from fluxexp.plan import Plan
from fluxexp.telemetry import EventLog
from fluxexp.worker import Assignment, WorkOrder


@dataclass(frozen=True, slots=True)
class Pool:
    """All tasks in the order of their samples, and the shard of each rank."""

    orders: Sequence[WorkOrder]
    plans: Sequence[Plan]
    entries: Sequence[tuple[int, int]]
    """(number of the run, number of the task in it)."""
    shards: Sequence[Sequence[int]]
    """For each rank, indices into `entries`, in the order of the work (`interleaving.py`)."""
    costs: Sequence[Sequence[float]]
    """For each rank, the costs of its shard: steps times tokens."""

    @classmethod
    def of(
        cls,
        orders: Sequence[WorkOrder],
        plans: Sequence[Plan],
        pending: Sequence[Sequence[int]],
        num_ranks: int,
        part: slice = slice(None),
        *,
        is_cpu: bool,
    ) -> Pool:
        """Build the pool of runs that share a model.

        Args:
            orders: of the runs, for workers.
            plans: of the same runs.
            pending: for each run, the numbers of the tasks to make.
            num_ranks: number of ranks that get a shard.
            part: slice of the tasks, in the order of their samples.
            is_cpu: whether the devices are CPUs, which have smaller batches.
        """
        entries = _in_sample_order(orders, plans, pending)[part]
        ranges = contiguous_shards(len(entries), num_ranks)
        kind_of = TaskKinds(plans, is_cpu=is_cpu)
        if len(plans) == 1 and has_one_kind(plans[0]):  # no order is better, and a run can have millions of tasks
            cost = kind_of(0, 0).cost
            return cls(orders, plans, entries, ranges, [array("d", [cost]) * len(shard) for shard in ranges])
        kinds = [kind_of(run, number) for run, number in entries]
        samples = [(*_conditioned_alike(orders[run]), plans[run].sample_index(number)) for run, number in entries]
        shards = [interleaved(shard, kinds.__getitem__, samples.__getitem__) for shard in ranges]
        return cls(orders, plans, entries, shards, [[kinds[place].cost for place in shard] for shard in shards])

    def assignment(self, owner: int, position: int) -> Assignment:
        """The task at `position` of a rank's shard."""
        run, number = self.entries[self.shards[owner][position]]
        return Assignment(self.orders[run], self.plans[run].task(number))

    def queue(self, coordinator: Coordinator, rank: int, events: EventLog, name: str) -> TaskQueue:
        """The queue of rank `rank`. `name` is the name of the work queue in the coordinator."""
        schedule = self.plans[0].config.parallelism.schedule
        return TaskQueue(self, rank, WorkSource(coordinator, rank, self.costs, schedule, name), events)


class TaskQueue:
    """The queue from which the worker of one rank takes tasks."""

    def __init__(self, pool: Pool, rank: int, source: WorkSource, events: EventLog) -> None:
        self._pool = pool
        self._rank = rank
        self._source = source
        self._events = events
        self._cost_of: dict[tuple[int, str], float] = {}
        """By run and task key: runs of one fingerprint under several names have equal task keys."""

    @property
    def num_stolen(self) -> int:
        """Number of tasks taken from the shards of other ranks."""
        return self._source.num_stolen

    @property
    def orders(self) -> Sequence[WorkOrder]:
        """The runs of the pool."""
        return self._pool.orders

    def upcoming(self, number: int) -> list[Assignment]:
        """The next tasks of the own shard, unless other ranks take them first."""
        return [self._pool.assignment(self._rank, position) for position in self._source.upcoming[:number]]

    def take(self, wanted: int) -> list[Assignment]:
        """Take up to `wanted` tasks, which then belong to this rank."""
        if self._source.upcoming:
            taken = self._source.take(wanted)
        else:
            with self._events.span("steal"):
                taken = self._source.take(wanted)
        if taken is None:
            return []
        positions = range(taken.first, taken.last)
        assignments = [self._pool.assignment(taken.owner, position) for position in positions]
        for position, assignment in zip(positions, assignments, strict=True):
            self._cost_of[_key(assignment)] = self._pool.costs[taken.owner][position]
        return assignments

    def give_up(self) -> None:
        """Leave the rest of the shard to other ranks."""
        self._source.give_up()

    def report(self, seconds: float, made: Sequence[Assignment]) -> None:
        """Report the pace of this rank to the others."""
        self._source.report(seconds, sum(self._cost_of.pop(_key(assignment)) for assignment in made))


def _key(assignment: Assignment) -> tuple[int, str]:
    return assignment.order.number, assignment.task.key


def ranks_to_use(mode: ParallelismMode, num_tasks: int, full_batch: int, world_size: int) -> tuple[int, str]:
    """Number of ranks that work, and the reason.

    Args:
        mode: `auto` uses at most as many ranks as there are full batches, because a device needs nearly the same time
            for a partial batch as for a full one.
        num_tasks: number of images to make.
        full_batch: number of images that keep a device busy.
        world_size: number of all ranks.
    """
    if mode == "single":
        return 1, "parallelism=single"
    if mode == "data" or world_size == 1:
        return world_size, f"{num_tasks} images, data parallel" if world_size > 1 else "one process"
    number = max(1, min(world_size, ceil(num_tasks / full_batch)))
    if number == world_size:
        return number, f"{num_tasks} images, data parallel"
    return number, f"{num_tasks} images, and {full_batch} keep a device busy (parallelism=data uses all ranks)"


def full_batch(config: RunConfig, is_cpu: bool) -> int:
    """Number of images of `config`'s usual size that keep a device busy."""
    passes = FAMILIES[config.model.family].passes(config.sampling.true_cfg_scale)
    return full_batch_size(passes * usual_tokens(config), is_cpu)


def usual_tokens(config: RunConfig) -> int:
    """Number of tokens of an image of `config`'s usual size, text included.

    An upper bound if `sampling.max_sequence_length` is null: rank 0 plans before it knows the tokenizer's limit.
    """
    side = config.model.resolution
    width, height = working_size(
        (side, side), config.sampling.height, config.sampling.width, config.sampling.max_pixels
    )
    return FAMILIES[config.model.family].tokens(width * height, config.sampling.max_sequence_length)


def _in_sample_order(
    orders: Sequence[WorkOrder], plans: Sequence[Plan], pending: Sequence[Sequence[int]]
) -> Sequence[tuple[int, int]]:
    """All tasks, with those of a sample next to each other, so that it is read and conditioned once."""
    if len(plans) == 1:
        return SingleRunTasks(pending[0])
    entries = [(run, number) for run, numbers in enumerate(pending) for number in numbers]
    first_seen = {source: place for place, source in reversed(list(enumerate(order.source for order in orders)))}

    def place(entry: tuple[int, int]) -> tuple[int, int, int, int]:
        run, number = entry
        return (first_seen[orders[run].source], plans[run].sample_index(number), number, run)

    return sorted(entries, key=place)


def _conditioned_alike(order: WorkOrder) -> tuple[Hashable, ...]:
    """Key of runs that share the read and conditioned samples."""
    return order.source, order.working_size, order.config.sampling.max_sequence_length
