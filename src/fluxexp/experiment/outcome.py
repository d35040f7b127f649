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

    def objective(self, name: str) -> float | None:
        """What a sweeper that searches is told: `device_s_per_image`, or `quality`, the mean of the metric judged by.

        None where there is none.
        """
        if name == "quality":
            score = self.summary.get("scores", {}).get(self.summary.get("judged_by"))
            return None if score is None else float(score["mean"])
        cost = self.summary.get("cost", {}).get(name)
        return None if cost is None else float(cost)

    @classmethod
    def of(cls, directory: Path, summary: Mapping[str, Any]) -> Self:
        """The outcome that a summary tells of."""
        return cls(directory, summary["status"], None, summary)

    @classmethod
    def failed(cls, directory: Path, error: str) -> Self:
        """The outcome of a run that could not be begun."""
        return cls(directory, "failed", error)
