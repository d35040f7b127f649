"""The workforce of a session: the processes that make its images, as the process that leads the session sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from fluxexp.experiment.heartbeat import HeartbeatSender
from fluxexp.experiment.rank_run import RankRun
from fluxexp.experiment.rounds import lead_rounds
from fluxexp.experiment.run_monitor import RunMonitor
from fluxexp.experiment.session_messages import Heartbeat, RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.session_stop import FailureLimit, SessionStop
from fluxexp.parallel.topology import Topology


@dataclass(frozen=True, slots=True)
class WorkResults:
    """How the work of a session ended."""

    ranks: Mapping[int, RankResult]
    """The last result of each rank, also of lost ones."""
    heartbeat_error: Exception | None = None
    """Why the figures of ranks are incomplete; None if they are complete."""


class Workforce(Protocol):
    """Makes the images of a session."""

    @property
    def topology(self) -> Topology:
        """Of the process that leads the session, in a new part of the coordinator for each session."""
        ...

    def describe(self, session_plan: SessionPlan) -> str:
        """Who will work, for the terminal."""
        ...

    def make_images(self, session_plan: SessionPlan, stop: SessionStop, run_monitor: RunMonitor) -> WorkResults:
        """Make the images of the session, until all tasks have a record or the session stops.

        Raises:
            FluxexpError: no process can work.
        """
        ...

    def scoring_ranks(self, results: Mapping[int, RankResult]) -> Collection[int]:
        """The ranks that take part in the scoring pass, rank 0 included."""
        ...

    def close(self) -> None:
        """End what the workforce has started for the session. Also called after an error."""
        ...


class LaunchedRanks:
    """The workforce of one launch. Rank 0 leads the session, and works like the others."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def describe(self, session_plan: SessionPlan) -> str:
        """See `Workforce`."""
        layouts, world_size = session_plan.work_layouts, self.topology.world_size
        number = min(world_size, sum(layout.num_ranks for layout in layouts))
        why = layouts[0].why if len(layouts) == 1 else f"{len(layouts)} models"
        return f"ranks      {number} of {world_size} ({why}), rank 0 on {self.topology.device_name}"

    def make_images(self, session_plan: SessionPlan, stop: SessionStop, run_monitor: RunMonitor) -> WorkResults:
        """See `Workforce`."""
        rank = RankRun(self.topology, session_plan, stop, run_monitor.show_image)
        limit = FailureLimit(session_plan.runs[0].plan.config.failures.max_failure_rate, stop)

        def on_beat(heartbeats: Mapping[int, Heartbeat]) -> None:
            limit.judge(beat.figures for beat in heartbeats.values())
            run_monitor.show_progress(heartbeats)

        with HeartbeatSender(self.topology.coordinator, rank.measurement.figures, on_beat) as heartbeat:
            results = lead_rounds(self.topology, session_plan, rank.work, stop)
        rank.free_model()
        return WorkResults(results, heartbeat.error)

    def scoring_ranks(self, results: Mapping[int, RankResult]) -> Collection[int]:
        """See `Workforce`: the ranks that can go on."""
        return [rank for rank, result in results.items() if rank == 0 or result.is_able]

    def close(self) -> None:
        """See `Workforce`: the launcher ends the processes."""
