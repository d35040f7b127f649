"""The session plan: rank 0 prepares and announces it, and the other ranks follow it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fluxexp.address import Address
from fluxexp.config import RunConfig, build
from fluxexp.errors import FluxexpError, MainRankError, RankError, SearchEnd, StorageError
from fluxexp.experiment.config_changes import config_changes, with_changes
from fluxexp.experiment.pending_tasks import find_pending
from fluxexp.experiment.session_messages import (
    RESULT,
    SESSION,
    AnnouncedRun,
    AnnouncedSession,
    RankResult,
    SessionAnnouncement,
    queue_name,
)
from fluxexp.experiment.work_layout import WorkLayout, choose_work_layout
from fluxexp.interruption import Interrupted
from fluxexp.packing import pack_counts, pack_numbers, unpack_counts, unpack_numbers
from fluxexp.parallel.stealing import prepare_queue
from fluxexp.parallel.topology import Topology
from fluxexp.plan import EarlierAttempts, Plan
from fluxexp.storage.process_deaths import DeathRegister
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.telemetry import say

MakePlan = Callable[[RunConfig], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a session plan, the same on every rank."""

    plan: Plan
    pending: Sequence[int]
    """Numbers of the tasks to make, in order."""
    attempts: EarlierAttempts
    """Number of earlier attempts at the tasks to make."""
    num_resumed: int
    """Tasks that an earlier session finished."""
    is_over: bool
    """Whether earlier sessions made all images, or gave up the rest, so that the summary stays as it is."""
    suspects: Sequence[int] = ()
    """Tasks of `pending` that were in work when a process died. Each is made alone (`pending_tasks.py`)."""
    last_chances: Sequence[int] = ()
    """The same, for tasks that are quarantined after one more death."""

    @property
    def shared(self) -> Sequence[int]:
        """Tasks of `pending` that all ranks share, and make in batches."""
        apart = {*self.suspects, *self.last_chances}
        return [number for number in self.pending if number not in apart] if apart else self.pending


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """What all ranks agree on before work starts: one run, or the runs of a sweep."""

    runs: Sequence[PlannedRun]
    sweep: SweepDirectory | None
    """The sweep's own directory; None for a single run."""
    session: str
    """Name of the session in event files and W&B: its start time in UTC, to the second."""
    start_s: float
    """Start time in seconds since the epoch, by rank 0's clock."""
    work_layouts: Sequence[WorkLayout] = ()
    """One for each of `groups`."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Errors of runs of a sweep that cannot run, by index of the plan. Only rank 0 knows them."""
    ranks: Sequence[int] = (0,)
    """The ranks that work."""
    round_number: int = 0
    """Increases when the ranks that are left do the work of lost ranks (`rounds.py`)."""

    @property
    def directory(self) -> SweepDirectory | RunDirectory:
        """Directory of the sweep, or of the single run."""
        return self.sweep or self.runs[0].plan.directory

    @property
    def is_over(self) -> bool:
        """Whether an earlier session made all images of all runs."""
        return all(run.is_over for run in self.runs)

    @property
    def num_tasks(self) -> int:
        """Images of all runs, finished ones included."""
        return sum(run.plan.num_tasks for run in self.runs)

    @property
    def num_resumed(self) -> int:
        """Images that earlier sessions made."""
        return sum(run.num_resumed for run in self.runs)

    def groups(self) -> list[list[int]]:
        """Numbers of the runs, grouped by the model that they share. A model is loaded once for its group."""
        groups: dict[object, list[int]] = {}
        for number, run in enumerate(self.runs):
            config = run.plan.config
            pictures = (config.redux.weights, config.ip_adapter.weights)
            shared = (repr(config.model), repr(config.optimization), config.lora.mixing, pictures)
            groups.setdefault(shared, []).append(number)
        return list(groups.values())


def agree_on_plan(
    topology: Topology,
    plans: Sequence[Plan] | None,
    make_plan: MakePlan,
    claim: ExitStack,
    *,
    sweep: SweepDirectory | None = None,
) -> SessionPlan:
    """Make the session plan on rank 0, or receive it on another rank.

    Args:
        topology: of this rank.
        plans: of the runs, with different directories. Only on rank 0; None on the other ranks.
        make_plan: makes a plan from rank 0's config, on the other ranks.
        claim: receives rank 0's locks on the run directories. The caller releases them at the end.
        sweep: directory of the sweep, on rank 0. In a sweep, a run that cannot run is refused, and the others run.

    Raises:
        FluxexpError: rank 0 cannot prepare the session; raised on rank 0.
        MainRankError: the same, raised on the other ranks.
        RankError: this rank has a different dataset than rank 0.
        SearchEnd: rank 0 announces no more sessions.
    """
    if topology.is_main:
        assert plans is not None
        return _prepare(topology, plans, claim, sweep)
    announcement = SESSION.wait(topology.coordinator, topology.liveness.expect(0))
    if announcement.is_search_end:
        RESULT.at(0).publish_own(topology.coordinator, RankResult.without_work(topology))
        raise SearchEnd
    if announcement.is_interrupted:
        raise Interrupted(announcement.error)
    if announcement.session is None:
        raise MainRankError(announcement.error or "rank 0 announced no session", announcement.exit_code)
    announced = announcement.session
    runs = [_follow(topology.rank, announced.config, run, make_plan) for run in announced.runs]
    retry_s = runs[0].plan.config.output.retry_s
    return SessionPlan(
        runs=runs,
        sweep=None if announced.sweep is None else SweepDirectory(Address.of(announced.sweep), retry_s),
        session=announced.session,
        start_s=announced.start_s,
        work_layouts=announced.work_layouts,
        ranks=range(topology.world_size),
    )


def _follow(rank: int, base: Mapping[str, Any], announced: AnnouncedRun, make_plan: MakePlan) -> PlannedRun:
    plan = make_plan(build(RunConfig, with_changes(base, announced.config_changes)))
    if plan.digest() != announced.digest:
        raise RankError(
            f"rank {rank} sees a different dataset than rank 0 ({len(plan.dataset)} samples, or other keys): "
            "dataset.path must hold the same files on every machine"
        )
    if plan.fingerprint != announced.fingerprint:
        raise RankError(
            f"rank {rank} has other weights than rank 0 (model {plan.config.model.name}), "
            "or another version of fluxexp: every machine needs the same files"
        )
    return PlannedRun(
        plan=plan,
        pending=unpack_numbers(announced.pending),
        attempts=EarlierAttempts(unpack_numbers(announced.tried), unpack_counts(announced.attempts)),
        num_resumed=announced.num_resumed,
        is_over=announced.is_over,
        suspects=announced.suspects,
        last_chances=announced.last_chances,
    )


def _prepare(topology: Topology, plans: Sequence[Plan], claim: ExitStack, sweep: SweepDirectory | None) -> SessionPlan:
    runs: list[PlannedRun] = []
    refused: dict[int, str] = {}
    for place, plan in enumerate(plans):
        try:
            claim.enter_context(plan.directory.claimed())
            runs.append(_plan_run(plan))
        except FluxexpError as error:
            if sweep is None:
                failed = SessionAnnouncement(error=str(error), exit_code=error.exit_code)
                SESSION.publish(topology.coordinator, failed)
                raise
            refused[place] = str(error)
    if not runs:
        nothing = StorageError("; ".join(["no point of the sweep can be run", *refused.values()]))
        SESSION.publish(topology.coordinator, SessionAnnouncement(error=str(nothing)))
        raise nothing
    start_s = time.time()
    session = time.strftime("%Y%m%dT%H%M%S", time.gmtime(start_s))
    ranks = range(topology.world_size)
    session_plan = SessionPlan(runs=runs, sweep=sweep, session=session, start_s=start_s, refused=refused, ranks=ranks)
    session_plan = replace(session_plan, work_layouts=_work_layouts(session_plan, topology))
    prepare_queues(topology, session_plan)  # before another rank can know the session
    config = asdict(runs[0].plan.config)
    announced = AnnouncedSession(
        config=config,
        runs=tuple(_announcement(run, config) for run in runs),
        sweep=None if sweep is None else str(sweep.address),
        session=session,
        start_s=start_s,
        work_layouts=tuple(session_plan.work_layouts),
    )
    SESSION.publish(topology.coordinator, SessionAnnouncement(session=announced))
    return session_plan


def prepare_queues(topology: Topology, session_plan: SessionPlan) -> None:
    """Create the work queues of the round of `session_plan`. Rank 0 calls it before it announces the round."""
    for number, _ in enumerate(session_plan.work_layouts):
        for is_last in (False, True):
            name = queue_name(session_plan.round_number, number, is_last=is_last)
            prepare_queue(topology.coordinator, topology.world_size, name)


def _work_layouts(session_plan: SessionPlan, topology: Topology) -> list[WorkLayout]:
    groups = [[session_plan.runs[number] for number in group] for group in session_plan.groups()]
    return [
        choose_work_layout(
            [run.plan.config for run in runs],
            sum(len(run.shared) for run in runs),
            topology,
            is_alone=len(groups) == 1,
        )
        for runs in groups
    ]


def _plan_run(plan: Plan) -> PlannedRun:
    directory = plan.directory
    directory.writer.prepare(plan.fingerprint_payload, plan.config.output.overwrite)
    directory.writer.require_layout(plan.config.output)
    found = find_pending(plan, DeathRegister(directory.store).count())
    num_made = plan.num_tasks - len(found.numbers) - found.num_given_up
    is_over = not found.numbers and _summary_counts(plan) == (plan.num_tasks, num_made, found.num_given_up)
    if not is_over:
        directory.writer.reopen()
    return PlannedRun(
        plan=plan,
        pending=found.numbers,
        attempts=found.attempts,
        num_resumed=num_made,
        is_over=is_over,
        suspects=tuple(found.suspects),
        last_chances=tuple(found.last_chances),
    )


def _summary_counts(plan: Plan) -> tuple[object, object, object] | None:
    """Tasks, images and failures of the summary of an earlier session. None if it is damaged: it is written again."""
    try:
        summary = plan.directory.reader.summary() or {}
    except StorageError as error:
        say(f"note       {error}")
        return None
    return summary.get("num_tasks"), summary.get("num_ok"), summary.get("num_failed")


def _announcement(run: PlannedRun, base: Mapping[str, Any]) -> AnnouncedRun:
    return AnnouncedRun(
        config_changes=config_changes(base, asdict(run.plan.config)),
        digest=run.plan.digest(),
        fingerprint=run.plan.fingerprint,
        pending=pack_numbers(run.pending, run.plan.num_tasks),
        tried=pack_numbers(run.attempts.numbers, run.plan.num_tasks),
        attempts=pack_counts(run.attempts.counts),
        num_resumed=run.num_resumed,
        is_over=run.is_over,
        suspects=tuple(run.suspects),
        last_chances=tuple(run.last_chances),
    )
