"""Tracking with Weights & Biases. If W&B is slow, offline or broken, it never stops a run or slows it down.

W&B runs in a child process (`child.py`), and `Tracker` sends messages to it through a pipe. Only the child imports
wandb.
"""

from fluxexp.tracking.null_tracker import NullTracker
from fluxexp.tracking.run_names import JobType, run_name, run_title, sweep_title
from fluxexp.tracking.sample_row import THUMBNAIL_PX, SampleRow
from fluxexp.tracking.series import POINTS_TABLE, RANKS_COLUMNS, RANKS_TABLE, ranks_table, series
from fluxexp.tracking.summary_values import summary_values
from fluxexp.tracking.tracker import Tracker, open_tracker
from fluxexp.tracking.tracking_report import TrackingReport

__all__ = [
    "POINTS_TABLE",
    "RANKS_COLUMNS",
    "RANKS_TABLE",
    "THUMBNAIL_PX",
    "JobType",
    "NullTracker",
    "SampleRow",
    "Tracker",
    "TrackingReport",
    "open_tracker",
    "ranks_table",
    "run_name",
    "run_title",
    "series",
    "summary_values",
    "sweep_title",
]
