"""A session on all ranks: agree on a plan, work, finalize. Rank 0 also shows progress, logs to W&B and finalizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from fluxexp.compare import references
from fluxexp.config.families import FAMILIES
from fluxexp.config.lora_checks import lora_notes
from fluxexp.errors import FluxexpError, MainRankError, RankError, RankFailedError, SearchEnd
from fluxexp.experiment.finalize import (
    compare_points,
    finalize,
    finalize_unchanged,
    raise_rank_errors,
    say_cut_prompts,
    say_results,
    say_stop,
    summary_of,
    with_figures,
)
from fluxexp.experiment.heartbeat import HeartbeatSender
from fluxexp.experiment.outcome import Outcome, incomplete
from fluxexp.experiment.rank_run import RankRun
from fluxexp.experiment.rounds import follow_rounds, wait_for_results
from fluxexp.experiment.run_monitor import RunMonitor
from fluxexp.experiment.session_messages import (
    FINALIZED,
    RESULT,
    SESSION,
    RankResult,
    SessionAnnouncement,
)
from fluxexp.experiment.session_plan import MakePlan, PlannedRun, SessionPlan, agree_on_plan
from fluxexp.experiment.session_stop import STOP, SessionStop, StopReason, StopRequest, stop_figures
from fluxexp.experiment.sweep import Sweep
from fluxexp.experiment.workforce import Workforce
from fluxexp.interruption import Interrupted, interruption
from fluxexp.parallel.topology import Topology, unused_devices
from fluxexp.plan import Plan
from fluxexp.scoring import ScoringReport, score_runs
from fluxexp.storage.patience import on_each_use
from fluxexp.telemetry import say


@dataclass(frozen=True, slots=True)
class Session:
    """This process's view of one session: of a run, or of all runs of a sweep."""

    workforce: Workforce
    plans: Sequence[Plan] | None
    """Plans of the runs. Only rank 0 has them."""
    make_plan: MakePlan
    overrides: Sequence[Sequence[str]]
    """The overrides that the user typed for each plan."""
    sweep: Sweep | None
    """None for a single run."""

    @property
    def topology(self) -> Topology:
        """Of this process."""
        return self.workforce.topology

    def run(self) -> list[Outcome]:
        """Agree on a plan, work and finalize. Returns how each plan ended, in their order; empty on ranks above 0.

        Raises:
            Interrupted: a signal asked this process or rank 0 to stop, before the work began.
            FluxexpError: see `run_experiment`.
        """
        with ExitStack() as stack:
            stack.callback(self.workforce.close)
            stack.enter_context(on_each_use(self.topology.liveness.touch))
            session_plan = self._agree(stack)
            with interruption.deferred(), SessionStop(self.topology.coordinator, self.topology.liveness) as stop:
                if session_plan.is_over:
                    return self._finalize_unchanged(session_plan, stop)
                if self.topology.is_main:
                    return self._lead(session_plan, stop)
                self._follow(session_plan, stop)
                return []

    def _agree(self, claim: ExitStack) -> SessionPlan:
        """Agree on the session plan. A rank that cannot follow it publishes its error; the others work without it."""
        directory = self.sweep.directory if self.sweep else None
        try:
            return agree_on_plan(self.topology, self.plans, self.make_plan, claim, sweep=directory)
        except (MainRankError, SearchEnd):
            raise
        except Interrupted as error:
            with interruption.deferred():
                self._say_interrupted(str(error))
            raise
        except FluxexpError as error:
            if self.topology.is_main:
                raise
            RESULT.at(0).publish_own(self.topology.coordinator, RankResult.without_work(self.topology, str(error)))
            self._wait_for_finalize()
            raise RankFailedError(str(error)) from error

    def _say_interrupted(self, signal: str) -> None:
        """Tell the other ranks that this one was interrupted before the work. One rank that stops, stops all."""
        coordinator = self.topology.coordinator
        with suppress(RankError):  # the store is lost, so there is nobody to tell
            if self.topology.is_main:
                SESSION.publish(coordinator, SessionAnnouncement(error=signal, is_interrupted=True))
                return
            STOP.publish(coordinator, StopRequest(StopReason.INTERRUPTED, signal))
            RESULT.at(0).publish_own(coordinator, RankResult.without_work(self.topology))

    def _finalize_unchanged(self, session_plan: SessionPlan, stop: SessionStop) -> list[Outcome]:
        """Finalize a session whose images an earlier session made: keep its figures and compute missing scores."""
        RESULT.at(0).publish_own(self.topology.coordinator, RankResult.without_work(self.topology))
        if not self.topology.is_main:
            self._score(session_plan, ())
            return []
        results = wait_for_results(self.topology, session_plan.ranks)
        say(_unchanged(session_plan))
        able = [rank for rank, result in results.items() if result.is_able]
        scoring = self._score(session_plan, able)
        earlier = [run.plan.directory.reader.summary() or {} for run in session_plan.runs]
        pairs = zip(session_plan.runs, earlier, strict=True)
        summaries = [with_figures(run, summary, scoring) for run, summary in pairs]
        summaries = [summary | stop_figures(stop.request, summary) for summary in summaries]
        outcomes = self._outcomes(session_plan, summaries)
        done = finalize_unchanged(self.sweep, session_plan, self.overrides, outcomes, summaries, earlier)
        FINALIZED.publish(self.topology.coordinator, True)
        for rank in sorted(results.keys() - set(able)):
            say(f"rank {rank}: {results[rank].error}", urgent=True)
        return outcomes if done and scoring.error is None else incomplete(outcomes)

    def _follow(self, session_plan: SessionPlan, stop: SessionStop) -> None:
        """Do this rank's part of all rounds, then its part of the scoring pass."""
        rank = RankRun(self.topology, session_plan, stop)
        with HeartbeatSender(self.topology.coordinator, rank.measurement.figures, on_beat=None) as heartbeat:

            def work(this_round: SessionPlan) -> RankResult:
                result = rank.work(this_round)
                heartbeat.send()
                return result

            result = follow_rounds(self.topology, session_plan, work)
        rank.free_model()
        if not result.is_able:
            self._wait_for_finalize()
            raise RankFailedError(result.error)
        self._score(session_plan, ())
        if stop.is_interrupted:  # a launcher ends all ranks when one exits with another code than 0
            self._wait_for_finalize()

    def _score(self, session_plan: SessionPlan, ranks: Collection[int]) -> ScoringReport:
        """Do this rank's part of the scoring pass. `ranks` take part; only rank 0 needs to know them."""
        plans = [run.plan for run in session_plan.runs]
        baselines = references([plan.config for plan in plans]) if self.topology.is_main else ()
        return score_runs(self.topology, plans, baselines, session_plan.sweep, ranks)

    def _wait_for_finalize(self) -> None:
        """Wait until rank 0 has finalized. A launcher ends all ranks when one fails, so a failed rank exits last."""
        with suppress(RankError):  # rank 0 has ended, or the store is lost with it
            FINALIZED.wait(self.topology.coordinator, self.topology.liveness.expect(0))

    def _lead(self, session_plan: SessionPlan, stop: SessionStop) -> list[Outcome]:
        """Do rank 0's part of the work, and all that only rank 0 does."""
        self._write_configs(session_plan)
        with RunMonitor(session_plan, self.topology.liveness) as run_monitor:
            work = self.workforce.make_images(session_plan, stop, run_monitor)
            results = work.ranks
            run_monitor.show_final_state(heartbeat_error=work.heartbeat_error)
            for run in session_plan.runs:
                if not run.is_over:  # all ranks have written records since rank 0 read them
                    run.plan.directory.reader.refresh_records()
            scoring = self._score(session_plan, self.workforce.scoring_ranks(results))
            summaries = [
                summary_of(session_plan, number, results, scoring, stop.request)
                for number in range(len(session_plan.runs))
            ]
            outcomes = self._outcomes(session_plan, summaries)
            overall = self.sweep.summarize(session_plan, outcomes, results) if self.sweep else summaries[0]
            if self.sweep is not None and not stop.is_interrupted:  # after a signal, summaries are written first
                overall |= compare_points(self.sweep, session_plan, self.overrides, outcomes)
            run_monitor.finish(overall, is_urgent=stop.is_interrupted)
        say_results(overall, run_monitor.report, session_plan)
        say_cut_prompts(summaries)
        done = finalize(
            self.sweep, session_plan, self.overrides, outcomes, summaries, {**overall, "tracking": run_monitor.report}
        )
        FINALIZED.publish(self.topology.coordinator, True)
        say_stop(overall)
        if not overall["interrupted"]:
            raise_rank_errors(results, summaries, overall)
        return outcomes if done and (scoring.error is None or overall["interrupted"]) else incomplete(outcomes)

    def _outcomes(self, session_plan: SessionPlan, summaries: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """The outcome of each plan, also of refused ones, in the order of the plans."""
        assert self.plans is not None
        done = iter(zip(session_plan.runs, summaries, strict=True))
        outcomes = []
        for place, plan in enumerate(self.plans):
            refused = session_plan.refused.get(place)
            if refused is not None:
                outcomes.append(Outcome.failed(plan.directory.address, refused))
            else:
                run, summary = next(done)
                outcomes.append(Outcome.of(run.plan.directory.address, summary))
        return outcomes

    def _write_configs(self, session_plan: SessionPlan) -> None:
        """Write the configs into the run directories, and print what the session will do."""
        accepted = [o for place, o in enumerate(self.overrides) if place not in session_plan.refused]
        for run, overrides in zip(session_plan.runs, accepted, strict=True):
            run.plan.directory.writer.write_config(run.plan.config, overrides)
        lines = self._run_lines(session_plan.runs[0]) if self.sweep is None else self.sweep.lines(session_plan)
        for line in lines:
            say(line)
        notes = (text for run in session_plan.runs for text in (*run.plan.dataset.notes, *lora_notes(run.plan.config)))
        for text in dict.fromkeys(notes):
            say(f"note       {text}")
        say(f"tasks      {session_plan.num_tasks}, {session_plan.num_resumed} done before")
        if num_apart := sum(len(run.suspects) + len(run.last_chances) for run in session_plan.runs):
            say(f"note       {num_apart} tasks were in work when a process died: they are made one at a time")
        say(self.workforce.describe(session_plan))
        if idle := unused_devices(self.topology):
            say(f"note       {idle} more GPU(s) are not used: `accelerate launch -m fluxexp ...` uses all GPUs")

    def _run_lines(self, run: PlannedRun) -> list[str]:
        plan = run.plan
        point = plan.point
        guidance = f"guidance {point.guidance:g}"
        if point.makes_second_pass:
            guidance += f", true CFG {point.true_cfg_scale:g}"
        if FAMILIES[plan.config.model.family].has_controlnet:
            guidance += f", ControlNet {point.control.scale:g}"
        return [
            f"run        {plan.directory.address}",
            f"model      {plan.config.model.name}, {point.scheduler}, {point.steps} steps, {guidance}",
            f"dataset    {plan.config.dataset.kind}, {len(plan.dataset)} samples",
        ]


def _unchanged(session_plan: SessionPlan) -> str:
    """The message of a session that has nothing to make."""
    num_failed = session_plan.num_tasks - session_plan.num_resumed
    if not num_failed:
        return f"complete: all {session_plan.num_tasks} images exist; output.overwrite=true makes them again"
    return (
        f"complete_with_failures: {session_plan.num_resumed} of {session_plan.num_tasks} images exist, and "
        f"{num_failed} tasks failed and are not tried again (failures.retries, failures.max_process_deaths)"
    )
