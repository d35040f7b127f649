"""A session of a run on all ranks: agree, work, meet at the end. Rank 0 conducts: progress, W&B, summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from fluxexp.config import RunConfig
from fluxexp.errors import FluxexpError, MainRankError, RankError, RankFailedError
from fluxexp.experiment.agreement import Agreement, agree
from fluxexp.experiment.conductor import Conductor
from fluxexp.experiment.plan import Plan
from fluxexp.experiment.pulse import Pulse
from fluxexp.experiment.rank import RankRun, no_result
from fluxexp.experiment.run import Outcome
from fluxexp.experiment.summary import summarise, table
from fluxexp.parallel.topology import Topology, join, unused_devices
from fluxexp.storage.atomic import write_atomically
from fluxexp.telemetry import say


@dataclass(frozen=True, slots=True)
class Session:
    """This process's view of one session."""

    topology: Topology
    plan: Plan | None
    make_plan: Callable[[RunConfig], Plan]
    overrides: Sequence[str]

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        plan: Plan | None,
        make_plan: Callable[[RunConfig], Plan],
        overrides: Sequence[str],
    ) -> Session:
        """Join the other ranks."""
        return cls(join(config.parallelism), plan, make_plan, overrides)

    def run(self) -> Outcome:
        """Agree, work, and meet at the end."""
        with ExitStack() as stack:
            agreement = self._agree(stack)
            if agreement.is_over:
                return self._leave_as_it_is(agreement)
            return self._conduct(agreement) if self.topology.is_main else self._follow(agreement)

    def _agree(self, claim: ExitStack) -> Agreement:
        """The run that all ranks do. A rank that cannot follow says so as its result: the others do without it."""
        try:
            return agree(self.topology, self.plan, self.make_plan, claim)
        except MainRankError:
            raise
        except FluxexpError as error:
            if self.topology.is_main:
                raise
            self.topology.meeting.publish_own("result", no_result(self.topology, str(error)))
            self._outlast_the_others()
            raise RankFailedError(str(error)) from error

    def _leave_as_it_is(self, agreement: Agreement) -> Outcome:
        """Nothing is left to make: the earlier session's figures stand. Rank 0, which may keep the store, goes last."""
        self.topology.meeting.publish_own("result", True)
        if self.topology.is_main:
            self.topology.meeting.wait_all("result")
            self.topology.meeting.publish("over", True)
            number = agreement.plan.num_tasks
            say(f"complete: all {number} images were made before; output.overwrite=true starts afresh")
            say(f"results in {agreement.plan.directory.path}")
        return Outcome(agreement.plan.directory.path)

    def _follow(self, agreement: Agreement) -> Outcome:
        """Do this rank's part. After its result is said, rank 0 may go, and the store with it."""
        rank = RankRun(self.topology, agreement)
        with Pulse(self.topology.meeting, rank.figures, on_beat=None):
            result = rank.work()
        self.topology.meeting.publish_own("result", result)
        if result["error"] is not None:
            self._outlast_the_others()
            raise RankFailedError(result["error"])
        return Outcome(agreement.plan.directory.path)

    def _outlast_the_others(self) -> None:
        """Launchers end all ranks when one ends badly: a rank that failed stays until the others are done."""
        with suppress(RankError):  # the store is gone: so is rank 0, which goes last
            self.topology.meeting.wait("over")

    def _conduct(self, agreement: Agreement) -> Outcome:
        """Do rank 0's part, and what is done once for all ranks."""
        directory = agreement.plan.directory
        self._describe(agreement)
        with Conductor(agreement) as conductor:
            rank = RankRun(self.topology, agreement, conductor.show_image)
            with Pulse(self.topology.meeting, rank.figures, conductor.beat) as pulse:
                self.topology.meeting.publish_own("result", rank.work())
                results = self.topology.meeting.wait_all("result")
            conductor.final(pulse_error=pulse.error)
            summary = summarise(agreement, results, max(r["finished_s"] for r in results.values()))
            conductor.finish(summary)
        directory.write_summary({**summary, "tracking": conductor.report})
        _report(summary, conductor.report, directory.path)
        self.topology.meeting.publish("over", True)
        _raise_rank_errors(results)
        return Outcome(directory.path, summary["num_failed"], summary["status"] != "incomplete")

    def _describe(self, agreement: Agreement) -> None:
        """Leave the config beside the results, and say on the terminal what is about to happen."""
        plan, topology = agreement.plan, self.topology
        config_text = yaml.safe_dump(asdict(plan.config), sort_keys=False, allow_unicode=True)
        write_atomically(plan.directory.path / "config.yaml", config_text)
        write_atomically(plan.directory.path / "overrides.yaml", yaml.safe_dump(list(self.overrides)))
        say(f"run        {plan.directory.path}")
        sampling = f"{plan.point.steps} steps, guidance {plan.point.guidance:g}"
        say(f"model      {plan.config.model.name}, {plan.config.scheduler.name}, {sampling}")
        say(f"tasks      {plan.num_tasks} of {plan.config.dataset.kind}, {agreement.num_resumed} done before")
        say(f"ranks      {topology.world_size}, rank 0 on {topology.device_name}")
        if idle := unused_devices(topology):
            say(f"note       {idle} more GPU(s) stay idle: `accelerate launch -m fluxexp ...` uses all of them")


def _report(summary: Mapping[str, Any], tracking: Mapping[str, Any], path: object) -> None:
    rate = summary["images_per_s"]
    say("")
    say(table(summary))
    say(
        f"{summary['status']}: {summary['num_ok']} of {summary['num_tasks']} images, {summary['num_failed']} failed, "
        f"{summary['wall_s']:.1f} s" + (f", {rate:.2f} images/s" if rate else "")
    )
    if tracking["error"]:
        say(f"W&B: {tracking['error']}")
    if tracking["directory"]:
        say(f"W&B run, {tracking['mode']}: {path}/{tracking['directory']}")
    say(f"results in {path}")


def _raise_rank_errors(results: Mapping[int, Mapping[str, Any]]) -> None:
    errors = [f"rank {rank}: {result['error']}" for rank, result in sorted(results.items()) if result["error"]]
    if errors:
        raise RankError("\n".join(("not all ranks finished; run the same command again to continue", *errors)))
