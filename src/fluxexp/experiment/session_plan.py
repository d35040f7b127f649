"""How ranks come to do one and the same work: rank 0 prepares, announces, and the others follow what it said."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fluxexp.config import RunConfig, build
from fluxexp.errors import FluxexpError, MainRankError, RankError, SearchEnd, StorageError
from fluxexp.experiment.work_layout import WorkLayout, choose_work_layout
from fluxexp.parallel.stealing import prepare
from fluxexp.parallel.topology import Topology
from fluxexp.plan import Plan, pack_numbers, unpack_numbers

MakePlan = Callable[[RunConfig], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """What all ranks know alike of one run."""

    plan: Plan
    pending: list[int]
    """Numbers of the tasks to make, in order."""
    attempts: Mapping[str, int]
    """How often failed tasks were tried before, by task key."""
    num_resumed: int
    """Tasks that were done before."""
    is_over: bool
    """Whether an earlier session made all there is to make, and its summary stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """What all ranks know alike: the runs to do, several in a sweep."""

    runs: Sequence[PlannedRun]
    sweep: Path | None
    """The sweep's own directory; None for a single run."""
    session: str
    """Names this session, in event files and W&B: the second it started, UTC."""
    start_s: float
    """When it started, seconds since the epoch on rank 0's clock."""
    work_layouts: Sequence[WorkLayout] = ()
    """How the ranks are spread over each of `groups`."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Why runs of a sweep cannot be done, by their place in what was asked for. Known to rank 0."""

    @property
    def directory(self) -> Path:
        """Where what concerns all of the session goes."""
        return self.sweep or self.runs[0].plan.directory.path

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return all(run.is_over for run in self.runs)

    @property
    def num_tasks(self) -> int:
        """Images asked for."""
        return sum(run.plan.num_tasks for run in self.runs)

    @property
    def num_resumed(self) -> int:
        """Images that were there before."""
        return sum(run.num_resumed for run in self.runs)

    def groups(self) -> list[list[int]]:
        """Numbers of the runs, those that share a loaded model together: a model is loaded once."""
        groups: dict[object, list[int]] = {}
        for number, run in enumerate(self.runs):
            config = run.plan.config
            groups.setdefault((repr(config.model), repr(config.optimization)), []).append(number)
        return list(groups.values())


def agree_on_plan(
    topology: Topology,
    plans: Sequence[Plan] | None,
    make_plan: MakePlan,
    claim: ExitStack,
    *,
    sweep: Path | None = None,
) -> SessionPlan:
    """Rank 0's plans, on every rank: their configs, their directories and its view of what is done already.

    Args:
        topology: of this rank.
        plans: rank 0's, of different directories; the other ranks need none.
        make_plan: makes the other ranks' plans from rank 0's configs.
        claim: takes rank 0's hold on the run directories, to be released when all is done.
        sweep: rank 0's directory of the sweep; in a sweep a run that cannot be done is refused, the others are done.

    Raises:
        FluxexpError: what went wrong in preparing, on rank 0.
        MainRankError: the same, on the other ranks.
        RankError: this rank sees another dataset than rank 0.
        SearchEnd: rank 0 will announce no more.
    """
    if topology.is_main:
        assert plans is not None
        return _prepare(topology, plans, claim, sweep)
    announced = topology.coordinator.wait("run")
    if announced.get("is_end"):
        topology.coordinator.publish_own("result", True)
        raise SearchEnd
    if announced["error"] is not None:
        raise MainRankError(announced["error"])
    return SessionPlan(
        runs=[_follow(topology.rank, run, make_plan) for run in announced["runs"]],
        sweep=announced["sweep"] and Path(announced["sweep"]),
        session=announced["session"],
        start_s=announced["start_s"],
        work_layouts=[WorkLayout(**choose_work_layout) for choose_work_layout in announced["spreads"]],
    )


def _follow(rank: int, announced: Mapping[str, Any], make_plan: MakePlan) -> PlannedRun:
    plan = make_plan(build(RunConfig, announced["config"]))
    if plan.digest() != announced["digest"]:
        raise RankError(
            f"rank {rank} sees another dataset than rank 0 ({len(plan.dataset)} samples, or other keys): "
            "dataset.path must hold the same files on every machine"
        )
    return PlannedRun(
        plan=plan,
        pending=unpack_numbers(announced["pending"]),
        attempts=announced["attempts"],
        num_resumed=announced["num_resumed"],
        is_over=announced["is_over"],
    )


def _prepare(topology: Topology, plans: Sequence[Plan], claim: ExitStack, sweep: Path | None) -> SessionPlan:
    runs: list[PlannedRun] = []
    refused: dict[int, str] = {}
    for place, plan in enumerate(plans):
        try:
            claim.enter_context(plan.directory.claimed())
            runs.append(_take_stock(plan))
        except FluxexpError as error:
            if sweep is None:
                topology.coordinator.publish("run", {"error": str(error)})
                raise
            refused[place] = str(error)
    if not runs:
        nothing = StorageError("; ".join(["no point of the sweep can be run", *refused.values()]))
        topology.coordinator.publish("run", {"error": str(nothing)})
        raise nothing
    start_s = time.time()
    session = time.strftime("%Y%m%dT%H%M%S", time.gmtime(start_s))
    session_plan = SessionPlan(runs=runs, sweep=sweep, session=session, start_s=start_s, refused=refused)
    session_plan = replace(session_plan, work_layouts=_work_layouts(session_plan, topology))
    for number, _ in enumerate(session_plan.work_layouts):  # before any rank can come to take its tasks
        for name in (f"work/{number}", f"work/{number}/last"):
            prepare(topology.coordinator, topology.world_size, name)
    announcement = {
        "runs": [_announcement(run) for run in runs],
        "sweep": sweep and str(sweep),
        "session": session,
        "start_s": start_s,
        "spreads": [asdict(choose_work_layout) for choose_work_layout in session_plan.work_layouts],
    }
    topology.coordinator.publish("run", {"error": None, **announcement})
    return session_plan


def _work_layouts(session_plan: SessionPlan, topology: Topology) -> list[WorkLayout]:
    groups = [[session_plan.runs[number] for number in group] for group in session_plan.groups()]
    return [
        choose_work_layout(
            [run.plan.config for run in runs],
            sum(len(run.pending) for run in runs),
            topology,
            is_alone=len(groups) == 1,
        )
        for runs in groups
    ]


def _take_stock(plan: Plan) -> PlannedRun:
    plan.directory.writer.prepare(plan.fingerprint_payload, plan.config.output.overwrite)
    outcomes = plan.directory.reader.outcomes()
    pending = plan.pending(outcomes)
    summary = plan.directory.reader.summary()
    is_over = (
        not pending and summary is not None and summary.get("num_ok") == plan.num_tasks == summary.get("num_tasks")
    )
    if not is_over:
        plan.directory.writer.reopen()
    return PlannedRun(
        plan=plan,
        pending=pending,
        attempts={key: record.attempt for key, record in outcomes.items() if record.status == "failed"},
        num_resumed=plan.num_tasks - len(pending),
        is_over=is_over,
    )


def _announcement(run: PlannedRun) -> dict[str, Any]:
    return {
        "config": asdict(run.plan.config),
        "digest": run.plan.digest(),
        "pending": pack_numbers(run.pending, run.plan.num_tasks),
        "attempts": dict(run.attempts),
        "num_resumed": run.num_resumed,
        "is_over": run.is_over,
    }
