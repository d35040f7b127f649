"""The task supply of a worker that helps another one to make its images (`parallelism=context`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fluxexp.experiment.task_supply import GroupTasks
from fluxexp.parallel.channel import Channel
from fluxexp.parallel.coordinator import Coordinator
from fluxexp.worker import Assignment, WorkOrder

_TURN = Channel("turn", int)
"""The group that a replica works on, by number of the turn; -1 at the end."""


def announce_turns(coordinator: Coordinator) -> Callable[[int | None], None]:
    """What the first worker of a replica calls before it works on a group, and at the end."""
    turn = 0

    def announce(group: int | None) -> None:
        nonlocal turn
        _TURN.at(turn).publish(coordinator, -1 if group is None else group)
        turn += 1

    return announce


class FollowerSupply:
    """See `TaskSupply`. The first worker of the replica has the tasks."""

    def __init__(self, coordinator: Coordinator, touch: Callable[[], None]) -> None:
        self._coordinator = coordinator
        self._touch = touch
        self._turn = 0

    def groups(self) -> Iterator[int]:
        """See `TaskSupply`: those of the first worker."""
        while (group := _TURN.at(self._turn).wait(self._coordinator, self._touch)) >= 0:
            yield group
            self._turn += 1

    def tasks(self, number: int) -> GroupTasks:
        """See `TaskSupply`."""
        return GroupTasks(_NoTasks(), (), turn=self._turn)


class _NoTasks:
    """See `RankQueue`. It is empty."""

    num_stolen = 0
    orders: Sequence[WorkOrder] = ()

    def upcoming(self, number: int) -> Sequence[Assignment]:
        return ()

    def take(self, wanted: int) -> Sequence[Assignment]:
        return ()

    def report(self, seconds: float, made: Sequence[Assignment]) -> None:
        """Nothing was made."""

    def give_up(self) -> None:
        """There is nothing to leave to others."""
