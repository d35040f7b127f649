"""The phases of the work of all ranks on rank 0's terminal: loading, warming up, generating."""

from __future__ import annotations

from collections.abc import Mapping

from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.telemetry import Phase, RankFigures


class WorkPhases:
    """Shows the phase of the rank that is furthest. Without any figures it is `loading`."""

    def __init__(self, session_plan: SessionPlan) -> None:
        self._session_plan = session_plan
        self._name = "loading"
        models = {run.plan.config.model.name for run in session_plan.runs if not run.is_over}
        self._phase = Phase("loading", f"model {models.pop()}" if len(models) == 1 else f"{len(models)} models")

    def show(self, figures: Mapping[int, RankFigures]) -> None:
        """Show the progress of all ranks. `figures` has the latest ones of each rank."""
        totals = [values.totals for values in figures.values()]
        if any(t.warmup_s or t.num_images or t.num_failed or t.batch_size_mean for t in totals):
            self._generate(figures)
        elif self._name == "loading":
            num_loaded = sum(t.load_s > 0 for t in totals)
            if num_loaded:
                self._phase.close()
                self._name, self._phase = "warming up", Phase("warming up", "with a first batch")
            elif len(totals) > 1:
                self._phase.update(0, note=f"on {len(totals)} ranks")

    def close(self) -> None:
        """End the last phase."""
        self._phase.close()

    def _generate(self, figures: Mapping[int, RankFigures]) -> None:
        resumed = self._session_plan.num_resumed
        if self._name != "generating":
            self._phase.close()
            self._name = "generating"
            self._phase = Phase("generating", "images", self._session_plan.num_tasks, resumed)
        working = [values.totals for values in figures.values() if values.finished_s is None]
        rates = [totals.images_per_s for totals in working if totals.images_per_s is not None]
        self._phase.update(
            resumed + sum(values.totals.num_images for values in figures.values()),
            failed=sum(values.totals.num_failed for values in figures.values()),
            per_s=sum(rates) if rates else None,
        )
