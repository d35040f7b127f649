"""The messages of the ranks of a replica: how loading and each batch ended, what comes next, and who has left."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fluxexp.parallel.channel import Channel


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """How loading the model ended on one rank of a replica."""

    error: str | None
    """None if the rank has loaded the model."""


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """How one batch ended on one rank of a replica."""

    is_ok: bool
    error: str | None
    """None if the batch succeeded, or if it failed here only because another rank failed first."""
    is_lost: bool
    """Whether the rank cannot make more batches."""


class ReplicaEnd(StrEnum):
    """Why the leader announces no more batches."""

    DONE = "done"
    FAILED = "failed"


LOADED = Channel("loaded", LoadOutcome)
"""Each rank's outcome of loading the model."""
BATCH = Channel("batch", str)
"""The leader's next batch, by number: a text of the caller, which this module does not read."""
OUTCOME = Channel("outcome", BatchOutcome)
"""Each rank's outcome, by number of the batch."""
END = Channel("end", ReplicaEnd)
"""The leader's last message."""
LEFT = Channel("left", bool)
"""Whether each rank has left the replica."""
