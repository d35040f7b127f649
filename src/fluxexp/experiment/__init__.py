"""Runs and sweeps from configs to summaries: plan, work, finalize."""

from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.run import (
    SweepPoint,
    end_search,
    follow_search,
    interrupt_search,
    run_experiment,
    run_sweep,
)

__all__ = ["Outcome", "SweepPoint", "end_search", "follow_search", "interrupt_search", "run_experiment", "run_sweep"]
