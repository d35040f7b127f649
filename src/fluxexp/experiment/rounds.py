"""The rounds of a session: the ranks that are left do the work that lost and failed ranks left.

Every session has one round. When its work is done, rank 0 looks for ranks that are lost or have failed. If there are
any, it reads from the manifest which tasks have no result, and announces another round, in which the other ranks make
them, each rank without a replica. Each further round has fewer ranks, so the rounds end.

No rank waits during a round. At its end, ranks above 0 wait for rank 0, and rank 0 waits for the ranks that live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fluxexp.errors import LostRankError
from fluxexp.experiment.pending_tasks import find_pending
from fluxexp.experiment.session_messages import HEARTBEAT, NEXT_ROUND, RESULT, NextRound, RankResult
from fluxexp.experiment.session_plan import PlannedRun, SessionPlan, prepare_queues
from fluxexp.experiment.session_stop import SessionStop
from fluxexp.experiment.work_layout import WorkLayout
from fluxexp.packing import pack_numbers, unpack_numbers
from fluxexp.parallel.topology import Topology
from fluxexp.storage.process_deaths import DeathRegister
from fluxexp.telemetry import say

Work = Callable[[SessionPlan], RankResult]


@dataclass(frozen=True, slots=True)
class _Left:
    """The tasks of a run that a round has left, by number. `pending` includes the others."""

    pending: Sequence[int]
    suspects: Sequence[int]
    last_chances: Sequence[int]


def lead_rounds(topology: Topology, session_plan: SessionPlan, work: Work, stop: SessionStop) -> dict[int, RankResult]:
    """Do rank 0's part of all rounds. Returns the last result of each rank, also of lost ones."""
    results: dict[int, RankResult] = {}
    this_round: SessionPlan | None = session_plan
    while this_round is not None:
        if topology.rank in this_round.ranks:
            RESULT.at(this_round.round_number).publish_own(topology.coordinator, work(this_round))
        results |= wait_for_results(topology, this_round.ranks, this_round.round_number)
        next_round = None if stop.is_requested else _next_round(this_round, results)
        if next_round is not None:
            prepare_queues(topology, next_round)
        channel = NEXT_ROUND.at(this_round.round_number + 1)
        channel.publish(topology.coordinator, _announcement(next_round))
        this_round = next_round
    return results


def follow_rounds(topology: Topology, session_plan: SessionPlan, work: Work) -> RankResult:
    """Do the part of a rank above 0 in all rounds. Returns its last result.

    Raises:
        LostRankError: rank 0 is lost.
    """
    while True:
        result = work(session_plan)
        RESULT.at(session_plan.round_number).publish_own(topology.coordinator, result)
        number = session_plan.round_number + 1
        announced = NEXT_ROUND.at(number).wait(topology.coordinator, topology.liveness.expect(0))
        if topology.liveness.taken_for_lost is not None:
            return replace(result, is_able=False, error=f"rank 0 took it for lost: {topology.liveness.taken_for_lost}")
        if topology.rank not in announced.ranks:
            return result
        left = [
            _Left(unpack_numbers(pending), suspects, last_chances)
            for pending, suspects, last_chances in zip(
                announced.pending, announced.suspects, announced.last_chances, strict=True
            )
        ]
        session_plan = _with_tasks(session_plan, left, announced.ranks, announced.work_layouts)


def wait_for_results(topology: Topology, ranks: Sequence[int], round_number: int = 0) -> dict[int, RankResult]:
    """On rank 0: the result of each of `ranks` after a round. A lost rank has a result that says why."""
    results: dict[int, RankResult] = {}
    for rank in ranks:
        try:
            channel = RESULT.at(round_number).at(rank)
            results[rank] = channel.wait(topology.coordinator, topology.liveness.expect(rank))
        except LostRankError:
            reason = topology.liveness.lost((rank,)).get(rank, "no result")
            topology.liveness.declare_lost(rank, reason)
            results[rank] = RankResult.of_lost_rank(rank, reason, HEARTBEAT.at(rank).read(topology.coordinator))
    return results


def _next_round(session_plan: SessionPlan, results: Mapping[int, RankResult]) -> SessionPlan | None:
    """The next round, if a rank of this one cannot go on, tasks have no result, and another rank can make them."""
    able = [rank for rank in session_plan.ranks if results[rank].is_able]
    broken = [rank for rank in session_plan.ranks if not results[rank].is_able]
    if not broken and session_plan.round_number == 0:  # a replica can break, although all of its ranks are able
        broken = [rank for rank in session_plan.ranks if results[rank].error is not None]
    if not able or not broken:
        return None
    left = [_without_result(run, session_plan.session, broken) for run in session_plan.runs]
    number = sum(len(tasks.pending) for tasks in left)
    if number == 0:
        return None
    names = ", ".join(map(str, broken))
    say(f"rank(s) {names} stopped early: rank(s) {', '.join(map(str, able))} make the {number} images that are left")
    layout = WorkLayout(len(able), 1, f"{number} images that rank(s) {names} left")
    return _with_tasks(session_plan, left, able, [layout] * len(session_plan.work_layouts))


def _without_result(run: PlannedRun, session: str, broken: Sequence[int]) -> _Left:
    """Those pending tasks of a run that this session has neither made nor recorded as failed.

    Tasks that a process of a `broken` rank worked on at its end are suspects, or quarantined.
    """
    if run.is_over:
        return _Left([], [], [])
    plan = run.plan
    plan.directory.reader.refresh_records()
    found = find_pending(plan, DeathRegister(plan.directory.store).count(session=session, ranks=broken))
    planned = set(run.pending)

    def is_left(number: int) -> bool:
        return number in planned and found.attempts.get(number, 0) <= run.attempts.get(number, 0)

    return _Left(*([n for n in part if is_left(n)] for part in (found.numbers, found.suspects, found.last_chances)))


def _with_tasks(
    session_plan: SessionPlan, left: Sequence[_Left], ranks: Sequence[int], work_layouts: Sequence[WorkLayout]
) -> SessionPlan:
    runs = [
        replace(run, pending=tasks.pending, suspects=tuple(tasks.suspects), last_chances=tuple(tasks.last_chances))
        for run, tasks in zip(session_plan.runs, left, strict=True)
    ]
    number = session_plan.round_number + 1
    return replace(session_plan, runs=runs, ranks=tuple(ranks), work_layouts=tuple(work_layouts), round_number=number)


def _announcement(session_plan: SessionPlan | None) -> NextRound:
    if session_plan is None:
        return NextRound(ranks=())
    return NextRound(
        ranks=tuple(session_plan.ranks),
        pending=tuple(pack_numbers(run.pending, run.plan.num_tasks) for run in session_plan.runs),
        suspects=tuple(tuple(run.suspects) for run in session_plan.runs),
        last_chances=tuple(tuple(run.last_chances) for run in session_plan.runs),
        work_layouts=tuple(session_plan.work_layouts),
    )
