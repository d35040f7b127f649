"""Where a rank gets its tasks from. `ShardSupply` divides them into shards; an engine may hand them out otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fluxexp.experiment.pool import Pool
from fluxexp.experiment.session_messages import queue_name
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.parallel.sharding import static_shard
from fluxexp.parallel.topology import Topology
from fluxexp.telemetry import EventLog
from fluxexp.worker import Assignment, Queue, WorkOrder


class RankQueue(Queue, Protocol):
    """The queue of one rank in one group of runs."""

    @property
    def num_stolen(self) -> int:
        """Number of tasks taken from the shards of other ranks."""
        ...

    def give_up(self) -> None:
        """Leave the tasks that this rank has not taken to other ranks."""
        ...


@dataclass(frozen=True, slots=True)
class GroupTasks:
    """The tasks of one group of runs that a rank may make."""

    queue: RankQueue
    alone: Iterable[Assignment]
    """Tasks that a process may have died of. They are made one at a time, before those of `queue`."""
    last: RankQueue | None = None
    """The tasks that are made last, by several ranks each (`WorkLayout.num_last`)."""
    turn: int = 0
    """How often a replica has worked on groups before. The replicas of each turn have other names."""


class TaskSupply(Protocol):
    """Gives one rank its work in one round. It is used by one thread."""

    def groups(self) -> Iterator[int]:
        """Numbers of the groups of the session plan that the rank works on, in order. May wait for work."""
        ...

    def tasks(self, number: int) -> GroupTasks | None:
        """The tasks of group `number`; None if the rank has none there. May wait until the model is needed."""
        ...


class ShardSupply:
    """The supply of ranks that divide the tasks into shards, and steal from each other (`parallel/stealing.py`).

    Args:
        topology: of this rank.
        session_plan: of the round. The same on every rank.
        orders: of the runs of the session.
        events: receives the time that stealing takes.
    """

    def __init__(
        self, topology: Topology, session_plan: SessionPlan, orders: Sequence[WorkOrder], events: EventLog
    ) -> None:
        self._topology = topology
        self._session_plan = session_plan
        self._orders = orders
        self._events = events
        self._groups = session_plan.groups()
        self._next_rank = 0

    def groups(self) -> Iterator[int]:
        """See `TaskSupply`: all groups."""
        return iter(range(len(self._groups)))

    def tasks(self, number: int) -> GroupTasks | None:
        """See `TaskSupply`. Call it for each group, in order."""
        layout, place = self._session_plan.work_layouts[number], self._place(number)
        pool = self._pool(number, layout.num_replicas, slice(-layout.num_last or None))
        alone = self._alone(number, place)
        if not static_shard(len(pool.entries), len(pool.shards), place) and not alone:
            return None
        name = queue_name(self._session_plan.round_number, number)
        queue = pool.queue(self._topology.coordinator, place, self._events, name)
        return GroupTasks(queue, alone, self._last(number) if layout.num_last else None)

    def _last(self, number: int) -> RankQueue:
        topology, layout = self._topology, self._session_plan.work_layouts[number]
        pool = self._pool(number, topology.world_size // layout.last_size, slice(-layout.num_last, None))
        name = queue_name(self._session_plan.round_number, number, is_last=True)
        return pool.queue(topology.coordinator, topology.rank // layout.last_size, self._events, name)

    def _place(self, number: int) -> int:
        """This rank's index among the replicas of a group. Groups that do not need all ranks get different ranks."""
        session_plan, layout = self._session_plan, self._session_plan.work_layouts[number]
        mode = session_plan.runs[self._groups[number][0]].plan.config.parallelism.mode
        own = session_plan.ranks.index(self._topology.rank)
        world_size = len(session_plan.ranks)
        if layout.num_ranks == world_size or mode == "single":
            return own // layout.context_size
        place = (own - self._next_rank) % world_size
        self._next_rank += layout.num_ranks
        return place

    def _alone(self, number: int, place: int) -> list[Assignment]:
        """The tasks that a process may have died of, of this rank's replica: they are made one at a time.

        All tasks that would be quarantined after one more death belong to one replica, so that no two of them are in
        work when a process dies, and takes the others with it.
        """
        alone: list[Assignment] = []
        num_replicas = self._session_plan.work_layouts[number].num_replicas
        for run_number in self._groups[number] if place < num_replicas else ():
            run = self._session_plan.runs[run_number]
            own = [*(run.last_chances if place == 0 else ()), *run.suspects[place::num_replicas]]
            alone += (Assignment(self._orders[run_number], task) for task in run.plan.tasks(own))
        return alone

    def _pool(self, number: int, num_replicas: int, part: slice) -> Pool:
        """The pool of `part` of the group's tasks. It is the same on every rank."""
        return pool_of(
            self._session_plan,
            self._orders,
            self._groups[number],
            num_replicas,
            part,
            is_cpu=self._topology.device.type == "cpu",
        )


def pool_of(
    session_plan: SessionPlan,
    orders: Sequence[WorkOrder],
    group: Sequence[int],
    num_replicas: int,
    part: slice = slice(None),
    *,
    is_cpu: bool,
) -> Pool:
    """The pool of `part` of the tasks of a group of runs, divided for `num_replicas`.

    Args:
        session_plan: of the round.
        orders: of all runs of the session.
        group: numbers of the runs.
        num_replicas: number of shards.
        part: slice of the tasks, in the order of their samples.
        is_cpu: see `Pool.of`.
    """
    runs = [session_plan.runs[number] for number in group]
    own_orders, plans = [orders[number] for number in group], [run.plan for run in runs]
    return Pool.of(own_orders, plans, [run.shared for run in runs], num_replicas, part, is_cpu=is_cpu)


def orders_of(session_plan: SessionPlan) -> list[WorkOrder]:
    """What workers need to know of each run."""
    return [
        WorkOrder(
            number=number,
            config=run.plan.config,
            dataset=run.plan.dataset,
            directory=run.plan.directory,
            attempts=run.attempts,
            is_alone=session_plan.sweep is None,
        )
        for number, run in enumerate(session_plan.runs)
    ]
