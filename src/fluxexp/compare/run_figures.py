"""The figures of one run about scores and cost."""

from __future__ import annotations

from typing import Any

from fluxexp.compare.cost import costs_of
from fluxexp.compare.run_view import RunView, quality_metric


def run_figures(run: RunView) -> dict[str, Any]:
    """The part of a run's summary.json about scores and cost (docs/run-directory.md)."""
    means = run.quality()
    (cost,) = costs_of([run])
    return {
        "scores": {name: mean.to_json() for name, mean in means.items()},
        "judged_by": quality_metric([run.config], means),
        "cost": cost.to_json(),
    }
