"""What became of tracking, as it stands in the run's summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingReport:
    """What became of tracking; `dataclasses.asdict` makes it JSON-able."""

    mode: Mode | None
    """What W&B did in the end; None where no W&B run came about, and `error` says why."""
    run_id: str | None = None
    directory: str | None = None
    """Of W&B's own files, relative to the run directory: what `wandb sync` takes."""
    url: str | None = None
    dropped: int = 0
    """Messages (figures, rows) that never reached the W&B process."""
    error: str | None = None
