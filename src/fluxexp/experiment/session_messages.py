"""The messages that ranks exchange during a session, and the channels that carry them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fluxexp.errors import FluxexpError
from fluxexp.experiment.work_layout import WorkLayout
from fluxexp.parallel.channel import Channel
from fluxexp.parallel.topology import Topology
from fluxexp.telemetry import DeviceFigures, RankFigures, Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedRun:
    """What rank 0 tells the other ranks about one run."""

    config_changes: Mapping[str, Any]
    """What its config has other than `AnnouncedSession.config`, by dotted path."""
    digest: str
    """Hash of rank 0's dataset. The other ranks compare it with their own, to detect a different dataset."""
    fingerprint: str
    """Of rank 0. Another rank with another fingerprint has other weights under the same path."""
    pending: str
    """Numbers of the tasks to make, packed by `packing.pack_numbers`."""
    tried: str
    """Numbers of the tasks to make that earlier sessions tried, packed in the same way."""
    attempts: str
    """Number of earlier attempts at each of them, packed by `packing.pack_counts`."""
    num_resumed: int
    is_over: bool
    suspects: tuple[int, ...]
    """Numbers of the tasks that were in work when a process died. There are few of them."""
    last_chances: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedSession:
    """What rank 0 tells the other ranks about a session."""

    config: Mapping[str, Any]
    """The `RunConfig` of the first run, as plain values."""
    runs: tuple[AnnouncedRun, ...]
    sweep: str | None
    """Address of the sweep; None for a single run."""
    session: str
    start_s: float
    work_layouts: tuple[WorkLayout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAnnouncement:
    """Rank 0's first message of a session: `session`, or why there is none."""

    session: AnnouncedSession | None = None
    error: str | None = None
    """Why rank 0 cannot prepare the session."""
    exit_code: int = FluxexpError.exit_code
    """Of this error, so that all ranks end with the same code: srun returns the largest one."""
    is_search_end: bool = False
    """Whether a search is over, so that there is no session."""
    is_interrupted: bool = False
    """Whether a signal stopped rank 0 before the session began; `error` names the signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPart:
    """One rank's part of one run of a session."""

    totals: Totals
    energy_j: float | None
    """The run's part of the joules of the rank's device, in proportion to the busy time; None if unknown."""
    applied_optimizations: tuple[str, ...]
    """Empty if the rank has not loaded the model of the run."""
    skipped_optimizations: Mapping[str, str]
    """Requested optimizations that the rank could not apply, with the reason."""
    error: str | None
    """Why the rank could not do its part; None if it could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """How one rank's part of a session ended. The defaults are those of a rank that made nothing."""

    rank: int
    device: str
    """Name of the device."""
    finished_s: float
    """When the rank had no more work, in seconds since the epoch, by its own clock."""
    totals: Totals = field(default_factory=Totals)
    device_figures: DeviceFigures = field(default_factory=DeviceFigures)
    """`memory_peak_gib` is the memory of this process if the device's allocator knows it."""
    num_stolen: int | None = 0
    """Tasks that the rank took from other ranks; None in the result for one run of a sweep, where it is unknown."""
    error: str | None = None
    """The last error that ended a part of the rank's work; None if there was none."""
    is_able: bool = True
    """Whether the rank can do more work. An error that only follows from the loss of another rank leaves it able."""
    lost_telemetry: Mapping[str, str] = field(default_factory=dict)
    """What is incomplete in the telemetry (events, device figures, ...), with the reason."""
    runs: tuple[RunPart, ...] = ()
    """One for each run of the session; empty if the rank never began to work."""

    @classmethod
    def without_work(cls, topology: Topology, error: str | None = None) -> RankResult:
        """The result of a rank that had nothing to make, or that could not begin because of `error`."""
        is_able = error is None
        return cls(
            rank=topology.rank, device=topology.device_name, finished_s=time.time(), error=error, is_able=is_able
        )

    @classmethod
    def of_lost_rank(cls, rank: int, reason: str, heartbeat: Heartbeat | None) -> RankResult:
        """The result of a rank that is lost, with the totals of its last heartbeat."""
        totals = Totals() if heartbeat is None else heartbeat.figures.totals
        finished_s = time.time() if heartbeat is None else heartbeat.sent_s
        error = f"lost: {reason}"
        return cls(rank=rank, device="lost", finished_s=finished_s, totals=totals, error=error, is_able=False)

    def of_run(self, number: int) -> RankResult:
        """The result for run `number` alone. The figures of the device are those of the session, except for energy."""
        if not self.runs:
            return self
        part = self.runs[number]
        device_figures = replace(self.device_figures, energy_j=part.energy_j)
        return replace(self, totals=part.totals, device_figures=device_figures, num_stolen=None, error=part.error)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One rank's figures at one moment."""

    sent_s: float
    """Seconds since the epoch, by the sender's clock."""
    figures: RankFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRound:
    """The work that lost and failed ranks left, which `ranks` do in another round of the session."""

    ranks: tuple[int, ...]
    """The ranks that take part. Empty if there is no other round."""
    pending: tuple[str, ...] = ()
    """For each run of the session, the numbers of the tasks to make, packed by `plan.pack_numbers`."""
    suspects: tuple[tuple[int, ...], ...] = ()
    """For each run, those of `pending` that a lost process worked on: they are made alone."""
    last_chances: tuple[tuple[int, ...], ...] = ()
    """The same, for tasks that are quarantined after one more death."""
    work_layouts: tuple[WorkLayout, ...] = ()


SESSION = Channel("session", SessionAnnouncement)
RESULT = Channel("result", RankResult)
"""Each rank's result after a round, by number of the round."""
NEXT_ROUND = Channel("round", NextRound)
"""By number of the round."""
HEARTBEAT = Channel("heartbeat", Heartbeat)
FINALIZED = Channel("finalized", bool)
"""Rank 0 has finalized the session: ranks that failed may exit."""


def queue_name(round_number: int, group: int, *, is_last: bool = False) -> str:
    """Name of the work queue of a group of runs. `is_last`: the queue of the last tasks (`WorkLayout.num_last`)."""
    return f"work/{round_number}/{group}/last" if is_last else f"work/{round_number}/{group}"


def replica_name(group: int, *, is_last: bool = False, turn: int = 0) -> str:
    """Name of the replicas that work on the queue of `group` in the first round. `turn`: see `GroupTasks`."""
    name = f"replica/{group}/{turn}" if turn else f"replica/{group}"
    return f"{name}/last" if is_last else name
