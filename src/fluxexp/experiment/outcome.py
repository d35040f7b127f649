"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, on rank 0; the other ranks know only that they did their part."""

    directory: Path
    status: str = "complete"
    """As in `summary.json`, or `failed`: it never began, and `error` says why."""
    error: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device_s_per_image(self) -> float | None:
        """Seconds of one device for an image, warm-up left out; None where the last session made none."""
        ranks = self.summary.get("ranks", [])
        made = sum(rank["num_images"] for rank in ranks)
        busy_s = sum(rank["busy_s"] - rank["warmup_s"] for rank in ranks)
        return round(busy_s / made, 6) if made else None

    @classmethod
    def of(cls, directory: Path, summary: Mapping[str, Any]) -> Self:
        """The outcome that a summary tells of."""
        return cls(directory, summary["status"], None, summary)

    @classmethod
    def failed(cls, directory: Path, error: str) -> Self:
        """The outcome of a run that could not be begun."""
        return cls(directory, "failed", error)
