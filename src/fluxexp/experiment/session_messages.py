"""The messages that ranks exchange during a session, and the channels that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxexp.experiment.work_layout import WorkLayout
from fluxexp.parallel.channel import Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedRun:
    """What rank 0 tells the other ranks about one run."""

    config: Mapping[str, Any]
    digest: str
    """Hash of rank 0's dataset. The other ranks compare it with their own, to detect a different dataset."""
    pending: str
    """Numbers of the tasks to make, packed by `plan.pack_numbers`."""
    attempts: Mapping[str, int]
    """Number of earlier attempts of failed tasks, by task key."""
    num_resumed: int
    is_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedSession:
    """What rank 0 tells the other ranks about a session."""

    runs: tuple[AnnouncedRun, ...]
    sweep: str | None
    """Address of the sweep; None for a single run."""
    session: str
    start_s: float
    work_layouts: tuple[WorkLayout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAnnouncement:
    """Rank 0's first message of a session. Exactly one of its fields is set."""

    session: AnnouncedSession | None = None
    error: str | None = None
    """Why rank 0 cannot prepare the session."""
    is_search_end: bool = False
    """Whether a search is over, so that there is no session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """How one rank's part of a session ended."""

    figures: Mapping[str, Any] | None = None
    """Totals of the rank; None if there was nothing to make."""
    runs: tuple[Mapping[str, Any], ...] = ()
    """The same figures for each run; empty if the rank never began to work."""
    error: str | None = None

    def to_summary(self) -> dict[str, Any]:
        """The values from which summaries are made."""
        return {**(self.figures or {}), "error": self.error, "runs": list(self.runs)}


RankResults = Mapping[int, Mapping[str, Any]]
"""`RankResult.to_summary` of each rank, by rank."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One rank's figures at one moment."""

    sent_s: float
    """Seconds since the epoch, by the sender's clock."""
    figures: Mapping[str, Any]
    """Result of `RankMeasurement.figures`."""


SESSION = Channel("session", SessionAnnouncement)
RESULT = Channel("result", RankResult)
HEARTBEAT = Channel("heartbeat", Heartbeat)
FINALIZED = Channel("finalized", bool)
"""Rank 0 has finalized the session: ranks that failed may exit."""


def queue_name(group: int, *, is_last: bool = False) -> str:
    """Name of the work queue of a group of runs. `is_last`: the queue of the last tasks (`WorkLayout.num_last`)."""
    return f"work/{group}/last" if is_last else f"work/{group}"


def replica_name(group: int, *, is_last: bool = False) -> str:
    """Name of the replicas that work on `queue_name(group, is_last)`."""
    return f"replica/{group}/last" if is_last else f"replica/{group}"
