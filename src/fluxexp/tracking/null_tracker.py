"""A tracker that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxexp.tracking.run_names import JobType
from fluxexp.tracking.sample_row import SampleRow
from fluxexp.tracking.tracking_report import TrackingReport


class NullTracker:
    """Has the methods of `Tracker` and does nothing, because tracking is disabled."""

    wants_rows = False
    was_stuck = False

    def start(
        self,
        config: Mapping[str, Any],
        run_dir: Path,
        *,
        run_id: str,
        name: str,
        job_type: JobType = "run",
        group: str | None = None,
        has_results: bool = True,
    ) -> None:
        """Do nothing."""

    def news(self) -> list[str]:
        """There are none."""
        return []

    def log(self, values: Mapping[str, float | None], wall_s: float) -> None:
        """Do nothing."""

    def add_sample_row(self, row: SampleRow) -> None:
        """Do nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, exit_code: int = 0, *, more: bool = False, at_most_s: float | None = None) -> TrackingReport:
        """Report that tracking is disabled."""
        return TrackingReport(mode="disabled")

    def close(self) -> None:
        """Do nothing."""
