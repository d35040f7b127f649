"""The messages that ranks exchange during a scoring pass, and the channels that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxexp.parallel.channel import Channel


@dataclass(frozen=True, slots=True)
class ScoringAnnouncement:
    """The images without scores that rank 0 has found."""

    pending: tuple[str, ...] | None
    """Numbers of the tasks of each run, packed by `packing.pack_numbers`; None if there is nothing to score."""
    references: tuple[int | None, ...] = ()
    """For each run, the number of the run that it is compared with."""


@dataclass(frozen=True, slots=True)
class RankScores:
    """How one rank's part of a scoring pass ended."""

    num_scored: int = 0
    num_errors: int = 0
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Metrics that are not available, and why."""
    error: str | None = None


SCORING = Channel("scoring", ScoringAnnouncement)
SCORED = Channel("scored", RankScores)
QUEUE_NAME = "score"
