"""A sweep: several runs that are done as one, and `sweep.json`, which says how each of them ended and what it cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxexp.compare import PointView, RunView, sweep_figures
from fluxexp.errors import StorageError
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.summary import rank_figures
from fluxexp.records import RECORD_VERSION, content_hash
from fluxexp.scoring import read_distances
from fluxexp.storage.atomic import write_atomically


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's own directory, beside those of its runs."""

    directory: Path
    unplanned: Sequence[tuple[Sequence[str], str]] = ()
    """Points that no run could be planned for: what was typed, and why."""

    @classmethod
    def of(
        cls, name: str, runs: Sequence[Path], root: Path, unplanned: Sequence[tuple[Sequence[str], str]] = ()
    ) -> Sweep:
        """The sweep over the run directories `runs`: the same command finds the same sweep."""
        points = sorted(run.name for run in runs) or sorted(" ".join(typed) for typed, _ in unplanned)
        return cls(root / f"{name}-sweep-{content_hash(points)}", unplanned)

    def lines(self, session_plan: SessionPlan) -> list[str]:
        """What is about to happen, for the terminal."""
        finished = sum(run.is_over or not run.pending for run in session_plan.runs)
        num_refused = len(session_plan.refused) + len(self.unplanned)
        refused = f", {num_refused} cannot be done" if num_refused else ""
        return [
            f"sweep      {self.directory}",
            f"points     {len(session_plan.runs) + num_refused}, {finished} done before{refused}",
            f"models     {len(session_plan.groups())}, each loaded once",
        ]

    def summarise(
        self, session_plan: SessionPlan, outcomes: Sequence[Outcome], results: Mapping[int, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The figures of the whole sweep (docs/run-directory.md)."""
        summaries = [outcome.summary for outcome in outcomes if outcome.summary]
        return {
            **self._head(outcomes),
            **{key: sum(summary[key] for summary in summaries) for key in ("num_tasks", "num_ok", "num_failed")},
            "num_resumed": session_plan.num_resumed,
            **rank_figures(results, session_plan.start_s),
        }

    def write(
        self,
        views: Mapping[Path, RunView],
        overrides: Sequence[Sequence[str]],
        outcomes: Sequence[Outcome],
        overall: Mapping[str, Any] | None,
    ) -> None:
        """Leave sweep.json. Where nothing was made, the figures of the session that made everything stay."""
        figures = self._figures(views, outcomes)
        parts = figures.pop("points")
        unplanned = [(typed, Outcome.failed(self.directory, error)) for typed, error in self.unplanned]
        ended = [*zip(overrides, outcomes, strict=True), *unplanned]
        file = self.directory / "sweep.json"
        try:
            earlier = json.loads(file.read_text()) if overall is None and file.is_file() else {}
            content = {
                "version": RECORD_VERSION,
                **earlier,
                **(overall or self._head(outcomes)),
                **figures,
                "points": [self._point(o, outcome) | part for (o, outcome), part in zip(ended, parts, strict=True)],
            }
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            raise StorageError(f"{file} cannot be written: {error}") from error

    def _head(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        status = "incomplete" if self.unplanned else _worst(outcomes)
        num_points = len(outcomes) + len(self.unplanned)
        return {"status": status, "name": self.directory.name, "num_points": num_points}

    def _point(self, overrides: Sequence[str], outcome: Outcome) -> dict[str, Any]:
        summary = outcome.summary
        return {
            "overrides": list(overrides),
            "directory": os.path.relpath(outcome.directory, self.directory.parent),
            "status": outcome.status,
            "error": outcome.error or next((rank["error"] for rank in summary.get("ranks", []) if rank["error"]), None),
            **{key: summary.get(key) for key in ("fingerprint", "num_tasks", "num_ok", "num_failed", "num_resumed")},
        }

    def _figures(self, views: Mapping[Path, RunView], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Quality and cost of all points, and what they say together."""
        distances = read_distances(self.directory)
        runs = [views.get(outcome.directory) if outcome.status != "failed" else None for outcome in outcomes]
        points = [*(PointView(run, distances) for run in runs), *(PointView(None, {}) for _ in self.unplanned)]
        return sweep_figures(points)


def _worst(outcomes: Sequence[Outcome]) -> str:
    order = ("complete", "complete_with_failures", "incomplete", "failed")
    worst = max((order.index(outcome.status) for outcome in outcomes), default=0)
    return order[min(worst, 2)]
