"""A session on all ranks: agree, work, meet at the end. Rank 0 conducts: progress, W&B, summaries."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from fluxexp.compare import references
from fluxexp.errors import FluxexpError, MainRankError, RankError, RankFailedError, SearchEnd
from fluxexp.experiment.agreement import AgreedRun, Agreement, MakePlan, agree
from fluxexp.experiment.closing import close, close_again, raise_rank_errors, say_results, summary_of, with_figures
from fluxexp.experiment.conductor import Conductor
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.pulse import Pulse
from fluxexp.experiment.rank import RankRun, no_result
from fluxexp.experiment.sweep import Sweep
from fluxexp.parallel.topology import Topology, unused_devices
from fluxexp.plan import Plan
from fluxexp.scoring import ScoringReport, score_runs
from fluxexp.storage.atomic import write_atomically
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
            agreement = self._agree(stack)
            if agreement.is_over:
                return self._leave_as_it_is(agreement)
            if self.topology.is_main:
                return self._conduct(agreement)
            self._follow(agreement)
            return []

    def _agree(self, claim: ExitStack) -> Agreement:
        """What all ranks do. A rank that cannot follow says so as its result: the others do without it."""
        directory = self.sweep.directory if self.sweep else None
        try:
            return agree(self.topology, self.plans, self.make_plan, claim, sweep=directory)
        except (MainRankError, SearchEnd):
            raise
        except FluxexpError as error:
            if self.topology.is_main:
                raise
            self.topology.meeting.publish_own("result", no_result(self.topology, str(error)))
            self._outlast_the_others()
            raise RankFailedError(str(error)) from error

    def _leave_as_it_is(self, agreement: Agreement) -> list[Outcome]:
        """Nothing is left to make: the earlier session's figures stand. There may be something left to score."""
        self.topology.meeting.publish_own("result", True)
        if not self.topology.is_main:
            self._score(agreement, ())
            return []
        results = self.topology.meeting.wait_all("result")
        say(f"complete: all {agreement.num_tasks} images were made before; output.overwrite=true starts afresh")
        able = [rank for rank, result in results.items() if result is True]
        scoring = self._score(agreement, able)
        summaries = [with_figures(run, run.plan.directory.read_summary() or {}, scoring) for run in agreement.runs]
        outcomes = self._outcomes(agreement, summaries)
        close_again(self.sweep, agreement, self.overrides, outcomes, summaries, changed=scoring.num_scored > 0)
        self.topology.meeting.publish("over", True)
        for rank in sorted(results.keys() - set(able)):
            say(f"rank {rank}: {results[rank]['error']}", urgent=True)
        return outcomes

    def _follow(self, agreement: Agreement) -> None:
        """Do this rank's part. After its result is said, rank 0 may go, and the store with it."""
        rank = RankRun(self.topology, agreement)
        with Pulse(self.topology.meeting, rank.figures, on_beat=None):
            result = rank.work()
        self.topology.meeting.publish_own("result", result)
        if result["error"] is not None:
            self._outlast_the_others()
            raise RankFailedError(result["error"])
        self._score(agreement, ())

    def _score(self, agreement: Agreement, ranks: Collection[int]) -> ScoringReport:
        """This rank's part in scoring what was made, `ranks` (known to rank 0) together."""
        plans = [run.plan for run in agreement.runs]
        baselines = references([plan.config for plan in plans]) if self.topology.is_main else ()
        return score_runs(self.topology, plans, baselines, agreement.sweep, ranks)

    def _outlast_the_others(self) -> None:
        """Launchers end all ranks when one ends badly: a rank that failed stays until the others are done."""
        with suppress(RankError):  # the store is gone: so is rank 0, which goes last
            self.topology.meeting.wait("over")

    def _conduct(self, agreement: Agreement) -> list[Outcome]:
        """Do rank 0's part, and what is done once for all ranks."""
        self._describe(agreement)
        with Conductor(agreement) as conductor:
            rank = RankRun(self.topology, agreement, conductor.show_image)
            with Pulse(self.topology.meeting, rank.figures, conductor.beat) as pulse:
                self.topology.meeting.publish_own("result", rank.work())
                results = self.topology.meeting.wait_all("result")
            conductor.final(pulse_error=pulse.error)
            able = [rank for rank, result in results.items() if not (rank and result["error"])]
            scoring = self._score(agreement, able)
            summaries = [summary_of(agreement, number, results, scoring) for number in range(len(agreement.runs))]
            outcomes = self._outcomes(agreement, summaries)
            overall = self.sweep.summarise(agreement, outcomes, results) if self.sweep else summaries[0]
            conductor.finish(overall)
        say_results(overall, conductor.report, agreement)
        close(self.sweep, agreement, self.overrides, outcomes, summaries, {**overall, "tracking": conductor.report})
        self.topology.meeting.publish("over", True)
        raise_rank_errors(results, summaries, overall)
        return outcomes

    def _outcomes(self, agreement: Agreement, summaries: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """How each plan ended, the refused ones included, in the order of the plans."""
        assert self.plans is not None
        done = iter(zip(agreement.runs, summaries, strict=True))
        outcomes = []
        for place, plan in enumerate(self.plans):
            refused = agreement.refused.get(place)
            if refused is not None:
                outcomes.append(Outcome.failed(plan.directory.path, refused))
            else:
                run, summary = next(done)
                outcomes.append(Outcome.of(run.plan.directory.path, summary))
        return outcomes

    def _describe(self, agreement: Agreement) -> None:
        """Leave the configs beside the results, and say on the terminal what is about to happen."""
        accepted = [o for place, o in enumerate(self.overrides) if place not in agreement.refused]
        for run, overrides in zip(agreement.runs, accepted, strict=True):
            plan = run.plan
            config_text = yaml.safe_dump(asdict(plan.config), sort_keys=False, allow_unicode=True)
            write_atomically(plan.directory.path / "config.yaml", config_text)
            write_atomically(plan.directory.path / "overrides.yaml", yaml.safe_dump(list(overrides)))
        lines = self._run_lines(agreement.runs[0]) if self.sweep is None else self.sweep.lines(agreement)
        for line in lines:
            say(line)
        say(f"tasks      {agreement.num_tasks}, {agreement.num_resumed} done before")
        say(f"ranks      {self._spread(agreement)}, rank 0 on {self.topology.device_name}")
        if idle := unused_devices(self.topology):
            say(f"note       {idle} more GPU(s) stay idle: `accelerate launch -m fluxexp ...` uses all of them")

    def _spread(self, agreement: Agreement) -> str:
        spreads = agreement.spreads
        number = min(self.topology.world_size, sum(spread.num_ranks for spread in spreads))
        why = spreads[0].why if len(spreads) == 1 else f"{len(spreads)} models"
        return f"{number} of {self.topology.world_size} ({why})"

    def _run_lines(self, run: AgreedRun) -> list[str]:
        plan = run.plan
        point = plan.point
        return [
            f"run        {plan.directory.path}",
            f"model      {plan.config.model.name}, {point.scheduler}, {point.steps} steps, guidance {point.guidance:g}",
            f"dataset    {plan.config.dataset.kind}, {len(plan.dataset)} samples",
        ]
