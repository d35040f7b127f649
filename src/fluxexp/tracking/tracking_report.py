"""The result of tracking, for the run's summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingReport:
    """The result of tracking. `dataclasses.asdict` converts it for JSON."""

    mode: Mode | None
    """Mode of the W&B run; None if no run could be opened, with the reason in `error`."""
    run_id: str | None = None
    directory: str | None = None
    """Directory of W&B's own files, relative to the run directory; absolute if WANDB_DIR is elsewhere. `wandb sync`
    uploads it."""
    url: str | None = None
    dropped: int = 0
    """Number of messages (figures, rows) that did not reach the W&B process."""
    error: str | None = None
