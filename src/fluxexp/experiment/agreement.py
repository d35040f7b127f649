"""How ranks come to do one and the same run: rank 0 prepares, announces, and the others follow what it said."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from fluxexp.config import RunConfig, build
from fluxexp.errors import FluxexpError, MainRankError, RankError
from fluxexp.experiment.plan import Plan, pack_numbers, unpack_numbers
from fluxexp.parallel.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What all ranks of a run know alike."""

    plan: Plan
    pending: list[int]
    """Numbers of the tasks to make, in order."""
    attempts: Mapping[str, int]
    """How often failed tasks were tried before, by task key."""
    num_resumed: int
    """Tasks that were done before."""
    is_over: bool
    """Whether an earlier session made all there is to make, and its summary stands."""
    session: str
    """Names this session of the run, in event files and W&B: the second it started, UTC."""
    start_s: float
    """When it started, seconds since the epoch on rank 0's clock."""


def agree(topology: Topology, plan: Plan | None, make_plan: Callable[[RunConfig], Plan], claim: ExitStack) -> Agreement:
    """Rank 0's plan, on every rank: its config, its directory and its view of what is done already.

    Args:
        topology: of this rank.
        plan: rank 0's; the other ranks need none.
        make_plan: makes the other ranks' plan from rank 0's config.
        claim: takes rank 0's hold on the run directory, to be released when the run has ended.

    Raises:
        FluxexpError: what went wrong in preparing, on rank 0.
        MainRankError: the same, on the other ranks.
        RankError: this rank sees another dataset than rank 0.
    """
    if topology.is_main:
        assert plan is not None
        return _prepare(topology, plan, claim)
    announced = topology.meeting.wait("run")
    if announced["error"] is not None:
        raise MainRankError(announced["error"])
    plan = make_plan(build(RunConfig, announced["config"]))
    if plan.digest() != announced["digest"]:
        raise RankError(
            f"rank {topology.rank} sees another dataset than rank 0 ({len(plan.dataset)} samples, or other keys): "
            "dataset.path must hold the same files on every machine"
        )
    return Agreement(
        plan=plan,
        pending=unpack_numbers(announced["pending"]),
        attempts=announced["attempts"],
        num_resumed=announced["num_resumed"],
        is_over=announced["is_over"],
        session=announced["session"],
        start_s=announced["start_s"],
    )


def _prepare(topology: Topology, plan: Plan, claim: ExitStack) -> Agreement:
    try:
        claim.enter_context(plan.directory.claimed())
        agreement = _take_stock(plan)
    except FluxexpError as error:
        topology.meeting.publish("run", {"error": str(error)})
        raise
    topology.meeting.publish("run", {"error": None, **_announcement(agreement)})
    return agreement


def _take_stock(plan: Plan) -> Agreement:
    plan.directory.prepare(plan.fingerprint_payload, plan.config.output.overwrite)
    outcomes = plan.directory.outcomes()
    pending = plan.pending(outcomes)
    summary = plan.directory.read_summary()
    is_over = not pending and summary is not None and summary["num_ok"] == plan.num_tasks == summary["num_tasks"]
    if not is_over:
        plan.directory.reopen()
    start_s = time.time()
    return Agreement(
        plan=plan,
        pending=pending,
        attempts={key: record.attempt for key, record in outcomes.items() if record.status == "failed"},
        num_resumed=plan.num_tasks - len(pending),
        is_over=is_over,
        session=time.strftime("%Y%m%dT%H%M%S", time.gmtime(start_s)),
        start_s=start_s,
    )


def _announcement(agreement: Agreement) -> dict[str, Any]:
    plan = agreement.plan
    return {
        "config": asdict(plan.config),
        "digest": plan.digest(),
        "pending": pack_numbers(agreement.pending, plan.num_tasks),
        "attempts": dict(agreement.attempts),
        "num_resumed": agreement.num_resumed,
        "is_over": agreement.is_over,
        "session": agreement.session,
        "start_s": agreement.start_s,
    }
