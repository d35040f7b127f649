"""One run from its config to its summary: plan, share, work, and what is left at the end."""

from fluxexp.experiment.run import Outcome, run_experiment

__all__ = ["Outcome", "run_experiment"]
