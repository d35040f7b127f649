"""A session on all ranks: agree, work, meet at the end. Rank 0 conducts: progress, W&B, summaries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from fluxexp.compare import references
from fluxexp.errors import FluxexpError, MainRankError, RankError, RankFailedError, SearchEnd
from fluxexp.experiment.finalize import (
    finalize,
    finalize_unchanged,
    raise_rank_errors,
    say_results,
    summary_of,
    with_figures,
)
from fluxexp.experiment.heartbeat import Heartbeat
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.rank_run import RankRun, no_result
from fluxexp.experiment.run_monitor import RunMonitor
from fluxexp.experiment.session_plan import MakePlan, PlannedRun, SessionPlan, agree_on_plan
from fluxexp.experiment.sweep import Sweep
from fluxexp.parallel.topology import Topology, unused_devices
from fluxexp.plan import Plan
from fluxexp.scoring import ScoringReport, score_runs
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.telemetry import say


@dataclass(frozen=True, slots=True)
class Session:
    """This process's view of one session: of a run, or of all runs of a sweep."""

    topology: Topology
    plans: Sequence[Plan] | None
    """Rank 0's."""
    make_plan: MakePlan
    overrides: Sequence[Sequence[str]]
    """What was typed for each plan."""
    sweep: Sweep | None
    """None for a single run."""

    def run(self) -> list[Outcome]:
        """Agree, work, and meet at the end; how each plan ended, in their order (rank 0 alone knows)."""
        with ExitStack() as stack:
            session_plan = self._agree(stack)
            if session_plan.is_over:
                return self._leave_as_it_is(session_plan)
            if self.topology.is_main:
                return self._conduct(session_plan)
            self._follow(session_plan)
            return []

    def _agree(self, claim: ExitStack) -> SessionPlan:
        """What all ranks do. A rank that cannot follow says so as its result: the others do without it."""
        directory = self.sweep.directory.path if self.sweep else None
        try:
            return agree_on_plan(self.topology, self.plans, self.make_plan, claim, sweep=directory)
        except (MainRankError, SearchEnd):
            raise
        except FluxexpError as error:
            if self.topology.is_main:
                raise
            self.topology.coordinator.publish_own("result", no_result(self.topology, str(error)))
            self._outlast_the_others()
            raise RankFailedError(str(error)) from error

    def _leave_as_it_is(self, session_plan: SessionPlan) -> list[Outcome]:
        """Nothing is left to make: the earlier session's figures stand. There may be something left to score."""
        self.topology.coordinator.publish_own("result", True)
        if not self.topology.is_main:
            self._score(session_plan, ())
            return []
        results = self.topology.coordinator.wait_all("result")
        say(f"complete: all {session_plan.num_tasks} images were made before; output.overwrite=true starts afresh")
        able = [rank for rank, result in results.items() if result is True]
        scoring = self._score(session_plan, able)
        summaries = [with_figures(run, run.plan.directory.reader.summary() or {}, scoring) for run in session_plan.runs]
        outcomes = self._outcomes(session_plan, summaries)
        finalize_unchanged(
            self.sweep, session_plan, self.overrides, outcomes, summaries, changed=scoring.num_scored > 0
        )
        self.topology.coordinator.publish("over", True)
        for rank in sorted(results.keys() - set(able)):
            say(f"rank {rank}: {results[rank]['error']}", urgent=True)
        return outcomes

    def _follow(self, session_plan: SessionPlan) -> None:
        """Do this rank's part. After its result is said, rank 0 may go, and the store with it."""
        rank = RankRun(self.topology, session_plan)
        with Heartbeat(self.topology.coordinator, rank.figures, on_beat=None):
            result = rank.work()
        self.topology.coordinator.publish_own("result", result)
        if result["error"] is not None:
            self._outlast_the_others()
            raise RankFailedError(result["error"])
        self._score(session_plan, ())

    def _score(self, session_plan: SessionPlan, ranks: Collection[int]) -> ScoringReport:
        """This rank's part in scoring what was made, `ranks` (known to rank 0) together."""
        plans = [run.plan for run in session_plan.runs]
        baselines = references([plan.config for plan in plans]) if self.topology.is_main else ()
        sweep = SweepDirectory(session_plan.sweep) if session_plan.sweep else None
        return score_runs(self.topology, plans, baselines, sweep, ranks)

    def _outlast_the_others(self) -> None:
        """Launchers end all ranks when one ends badly: a rank that failed stays until the others are done."""
        with suppress(RankError):  # the store is gone: so is rank 0, which goes last
            self.topology.coordinator.wait("over")

    def _conduct(self, session_plan: SessionPlan) -> list[Outcome]:
        """Do rank 0's part, and what is done once for all ranks."""
        self._describe(session_plan)
        with RunMonitor(session_plan) as run_monitor:
            rank = RankRun(self.topology, session_plan, run_monitor.show_image)
            with Heartbeat(self.topology.coordinator, rank.figures, run_monitor.beat) as heartbeat:
                self.topology.coordinator.publish_own("result", rank.work())
                results = self.topology.coordinator.wait_all("result")
            run_monitor.final(pulse_error=heartbeat.error)
            for run in session_plan.runs:
                if not run.is_over:  # all ranks wrote records meanwhile
                    run.plan.directory.reader.refresh_records()
            able = [rank for rank, result in results.items() if not (rank and result["error"])]
            scoring = self._score(session_plan, able)
            summaries = [summary_of(session_plan, number, results, scoring) for number in range(len(session_plan.runs))]
            outcomes = self._outcomes(session_plan, summaries)
            overall = self.sweep.summarise(session_plan, outcomes, results) if self.sweep else summaries[0]
            run_monitor.finish(overall)
        say_results(overall, run_monitor.report, session_plan)
        finalize(
            self.sweep, session_plan, self.overrides, outcomes, summaries, {**overall, "tracking": run_monitor.report}
        )
        self.topology.coordinator.publish("over", True)
        raise_rank_errors(results, summaries, overall)
        return outcomes

    def _outcomes(self, session_plan: SessionPlan, summaries: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """How each plan ended, the refused ones included, in the order of the plans."""
        assert self.plans is not None
        done = iter(zip(session_plan.runs, summaries, strict=True))
        outcomes = []
        for place, plan in enumerate(self.plans):
            refused = session_plan.refused.get(place)
            if refused is not None:
                outcomes.append(Outcome.failed(plan.directory.path, refused))
            else:
                run, summary = next(done)
                outcomes.append(Outcome.of(run.plan.directory.path, summary))
        return outcomes

    def _describe(self, session_plan: SessionPlan) -> None:
        """Leave the configs beside the results, and say on the terminal what is about to happen."""
        accepted = [o for place, o in enumerate(self.overrides) if place not in session_plan.refused]
        for run, overrides in zip(session_plan.runs, accepted, strict=True):
            run.plan.directory.writer.write_config(run.plan.config, overrides)
        lines = self._run_lines(session_plan.runs[0]) if self.sweep is None else self.sweep.lines(session_plan)
        for line in lines:
            say(line)
        say(f"tasks      {session_plan.num_tasks}, {session_plan.num_resumed} done before")
        say(f"ranks      {self._spread(session_plan)}, rank 0 on {self.topology.device_name}")
        if idle := unused_devices(self.topology):
            say(f"note       {idle} more GPU(s) stay idle: `accelerate launch -m fluxexp ...` uses all of them")

    def _spread(self, session_plan: SessionPlan) -> str:
        work_layouts = session_plan.work_layouts
        number = min(self.topology.world_size, sum(spread.num_ranks for spread in work_layouts))
        why = work_layouts[0].why if len(work_layouts) == 1 else f"{len(work_layouts)} models"
        return f"{number} of {self.topology.world_size} ({why})"

    def _run_lines(self, run: PlannedRun) -> list[str]:
        plan = run.plan
        point = plan.point
        return [
            f"run        {plan.directory.path}",
            f"model      {plan.config.model.name}, {point.scheduler}, {point.steps} steps, guidance {point.guidance:g}",
            f"dataset    {plan.config.dataset.kind}, {len(plan.dataset)} samples",
        ]
