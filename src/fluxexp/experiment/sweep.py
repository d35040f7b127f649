"""A sweep: several runs in one session, and `sweep.json` with the result and the cost of each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.address import Address
from fluxexp.compare import PointView, RunView, sweep_figures
from fluxexp.experiment.failure_reasons import merged_reasons
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.session_messages import RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.summary import rank_figures, steals
from fluxexp.records import RECORD_VERSION, content_hash
from fluxexp.storage.sweep_directory import SweepDirectory, sweep_directory
from fluxexp.telemetry import say


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep with its own directory, which is beside the directories of its runs."""

    directory: SweepDirectory
    unplanned: Sequence[tuple[Sequence[str], str]] = ()
    """Points without a run: their overrides, and why the run could not be planned."""

    @classmethod
    def of(
        cls,
        name: str,
        runs: Sequence[str],
        root: Address,
        unplanned: Sequence[tuple[Sequence[str], str]] = (),
        *,
        retry_s: float,
    ) -> Sweep:
        """The sweep in `root` over the runs with the names `runs`. The same command always finds the same sweep."""
        points = sorted(runs) or sorted(" ".join(typed) for typed, _ in unplanned)
        return cls(sweep_directory(name, content_hash(points), root, retry_s), unplanned)

    def lines(self, session_plan: SessionPlan) -> list[str]:
        """Lines for the terminal that describe the sweep before it starts."""
        finished = sum(run.is_over or not run.pending for run in session_plan.runs)
        num_refused = len(session_plan.refused) + len(self.unplanned)
        refused = f", {num_refused} cannot be run" if num_refused else ""
        return [
            f"sweep      {self.directory.address}",
            f"points     {len(session_plan.runs) + num_refused}, {finished} done before{refused}",
            f"models     {len(session_plan.groups())}, each loaded once",
        ]

    def summarize(
        self, session_plan: SessionPlan, outcomes: Sequence[Outcome], results: Mapping[int, RankResult]
    ) -> dict[str, Any]:
        """The figures of the whole sweep (docs/run-directory.md)."""
        summaries = [outcome.summary for outcome in outcomes if outcome.summary]
        return {
            **self._head(outcomes),
            **_sums(outcomes),
            "failure_reasons": merged_reasons(summaries),
            "num_resumed": session_plan.num_resumed,
            "notes": dict(sum((Counter(outcome.summary.get("notes", {})) for outcome in outcomes), Counter())),
            **rank_figures(results, session_plan.start_s, steals=steals(session_plan)),
        }

    def compare(
        self,
        views: Mapping[Address, RunView],
        overrides: Sequence[Sequence[str]],
        outcomes: Sequence[Outcome],
    ) -> dict[str, Any]:
        """What sweep.json says about the points: their quality and cost, their comparison, and the answer."""
        figures = self._figures(views, outcomes)
        parts = figures.pop("points")
        unplanned = [(typed, Outcome.failed(self.directory.address, error)) for typed, error in self.unplanned]
        ended = [*zip(overrides, outcomes, strict=True), *unplanned]
        points = [self._point(o, outcome) | part for (o, outcome), part in zip(ended, parts, strict=True)]
        return {**figures, "points": points}

    def write(
        self,
        views: Callable[[], Mapping[Address, RunView]],
        overrides: Sequence[Sequence[str]],
        outcomes: Sequence[Outcome],
        overall: Mapping[str, Any] | None,
    ) -> None:
        """Write sweep.json, and print its warnings.

        With `overall=None` nothing was made, and the figures of the earlier session stay. An unchanged file is not
        written again. If `overall` does not have what `compare` gives, it is computed.
        """
        compared = overall if overall and "points" in overall else self.compare(views(), overrides, outcomes)
        for warning in compared["warnings"]:
            say(f"note       {warning}")
        reader = self.directory.reader.lenient()
        earlier = reader.values() or {}
        if overall is not None or reader.notes:
            earlier = {}  # nothing of a damaged file is kept
        content = {
            "version": RECORD_VERSION,
            **earlier,
            **(overall or {**self._head(outcomes), **_sums(outcomes)}),
            **compared,
        }
        if json.dumps(content) != json.dumps(earlier):
            self.directory.write(content)

    def answer(self) -> str | None:
        """The sentence that answers the sweep's question, from sweep.json; None if there is no answer."""
        found = (self.directory.reader.lenient().values() or {}).get("answer")
        return found["sentence"] if found else None

    def _head(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        status = "incomplete" if self.unplanned else _worst(outcomes)
        num_points = len(outcomes) + len(self.unplanned)
        summaries = [outcome.summary for outcome in outcomes]
        return {
            "status": status,
            "name": self.directory.name,
            "num_points": num_points,
            "interrupted": any(summary.get("interrupted", False) for summary in summaries),
            "stopped": next((summary["stopped"] for summary in summaries if summary.get("stopped")), None),
        }

    def _point(self, overrides: Sequence[str], outcome: Outcome) -> dict[str, Any]:
        summary = outcome.summary
        return {
            "overrides": list(overrides),
            "directory": self.directory.relative(outcome.address),
            "status": outcome.status,
            "error": outcome.error or next((rank["error"] for rank in summary.get("ranks", []) if rank["error"]), None),
            **{key: summary.get(key) for key in ("fingerprint", "num_tasks", "num_ok", "num_failed", "num_resumed")},
        }

    def _figures(self, views: Mapping[Address, RunView], outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Quality and cost of all points, and their comparison."""
        distances = self.directory.reader.scores()
        runs = [views.get(outcome.address) if outcome.status != "failed" else None for outcome in outcomes]
        points = [*(PointView(run, distances) for run in runs), *(PointView(None, {}) for _ in self.unplanned)]
        return sweep_figures(points)


def _sums(outcomes: Sequence[Outcome]) -> dict[str, int]:
    names = ("num_tasks", "num_ok", "num_failed")
    return {name: sum(outcome.summary[name] for outcome in outcomes if outcome.summary) for name in names}


def _worst(outcomes: Sequence[Outcome]) -> str:
    order = ("complete", "complete_with_failures", "incomplete", "failed")
    worst = max((order.index(outcome.status) for outcome in outcomes), default=0)
    return order[min(worst, 2)]
