"""The tasks of a run, and what the manifest says of them. Imports no torch."""

from fluxexp.plan.run_plan import Plan
from fluxexp.plan.task_results import EarlierAttempts, TaskResults

__all__ = ["EarlierAttempts", "Plan", "TaskResults"]
