"""The tasks of each group of a session, as piles from which chunks are dealt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxexp.experiment.pool import Pool, full_batch
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.task_supply import orders_of, pool_of
from fluxexp.parallel.chunking import Pile


@dataclass(frozen=True, slots=True)
class GroupPile:
    """The tasks of one group. Those that must be made alone are at the last positions."""

    pile: Pile
    runs: Sequence[int]
    """Numbers of the runs."""
    pool: Pool
    alone: Sequence[tuple[int, int]]
    """(number of the run, number of the task in it)."""

    def task(self, position: int) -> tuple[int, int]:
        """(number of the run, number of the task in it) at a position."""
        num_shared = len(self.pool.shards[0])
        if position >= num_shared:
            return self.alone[position - num_shared]
        place, number = self.pool.entries[self.pool.shards[0][position]]
        return self.runs[place], number


def group_piles(session_plan: SessionPlan, *, is_cpu: bool) -> list[GroupPile]:
    """One pile for each group of runs that share a model. `is_cpu`: whether the workers have no GPUs."""
    orders = orders_of(session_plan)
    piles = []
    for group in session_plan.groups():
        pool = pool_of(session_plan, orders, group, 1, is_cpu=is_cpu)
        runs = [(number, session_plan.runs[number]) for number in group]
        alone = [(number, task) for number, run in runs for task in (*run.last_chances, *run.suspects)]
        costs = pool.costs[0]
        usual = costs[0] if len(costs) else 1.0
        batch_size = max(run.plan.config.sampling.batch_size or full_batch(run.plan.config, is_cpu) for _, run in runs)
        last = range(len(costs), len(costs) + len(alone))
        piles.append(GroupPile(Pile([*costs, *(usual for _ in alone)], batch_size, last), group, pool, alone))
    return piles
