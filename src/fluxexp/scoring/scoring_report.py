"""The result of a scoring pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxexp.scoring.scoring_messages import RankScores
from fluxexp.storage.result_files import SCORES
from fluxexp.telemetry import say


@dataclass(frozen=True, slots=True)
class ScoringReport:
    """The result of a scoring pass, on rank 0."""

    num_scored: int = 0
    num_errors: int = 0
    """Images for which a metric failed; their score lines contain the error."""
    wall_s: float = 0.0
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Metrics that could not be computed, with the reason."""
    error: str | None = None
    """Why the pass is incomplete; the scores computed so far are kept."""

    def to_json(self) -> dict[str, Any]:
        """As in `summary.json`."""
        return {
            "num_scored": self.num_scored,
            "num_errors": self.num_errors,
            "wall_s": round(self.wall_s, 3),
            "omitted": dict(self.omitted),
            "error": self.error,
        }


def report_of(results: Sequence[RankScores], wall_s: float, omitted: Mapping[str, str]) -> ScoringReport:
    """Combine what the ranks report, and print why the pass is incomplete, if it is. `omitted` adds metrics."""
    errors = [result.error for result in results if result.error]
    report = ScoringReport(
        num_scored=sum(result.num_scored for result in results),
        num_errors=sum(result.num_errors for result in results),
        wall_s=wall_s,
        omitted={**results[0].omitted, **omitted},
        error=errors[0] if errors else None,
    )
    if report.error:
        say(
            f"scoring is incomplete: {report.error}\n"
            "    (to continue, repeat the command or run `python -m fluxexp.score DIR`)",
            urgent=True,
        )
    elif report.num_errors:
        say(f"scoring failed for {report.num_errors} images; their lines in {SCORES} contain the errors", urgent=True)
    return report
