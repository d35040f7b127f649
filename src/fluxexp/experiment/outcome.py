"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from fluxexp.address import Address


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. On ranks above 0 it has only default values."""

    address: Address
    """Of the run."""
    status: str = "complete"
    """The status in `summary.json`; or `failed`, if the run could not start, with the reason in `error`."""
    error: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal stopped the session before the run was finished."""
        return bool(self.summary.get("interrupted"))

    @property
    def is_stopped(self) -> bool:
        """Whether the session stopped because too many tasks failed."""
        return bool(self.summary.get("stopped"))

    def objective(self, name: str) -> float | None:
        """The value that a searching sweeper gets: `device_s_per_image`, or `quality` (mean of the judging metric).

        None if the summary does not have it.
        """
        if name == "quality":
            score = self.summary.get("scores", {}).get(self.summary.get("judged_by"))
            return None if score is None else float(score["mean"])
        cost = self.summary.get("cost", {}).get(name)
        return None if cost is None else float(cost)

    @classmethod
    def of(cls, address: Address, summary: Mapping[str, Any]) -> Self:
        """The outcome of a run with this summary."""
        return cls(address, summary["status"], None, summary)

    @classmethod
    def failed(cls, address: Address, error: str) -> Self:
        """The outcome of a run that could not be started."""
        return cls(address, "failed", error)


def incomplete(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of a session that could not write its scores, summaries or reports. Its images exist."""
    return [outcome if outcome.status == "failed" else replace(outcome, status="incomplete") for outcome in outcomes]
