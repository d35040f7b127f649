"""Tracking with Weights & Biases. If W&B is slow, offline or broken, it never stops a run or slows it down.

W&B runs in a child process (`child.py`), and `Tracker` sends messages to it through a pipe. Only the child imports
wandb.
"""

from fluxexp.tracking.sample_row import THUMBNAIL_PX, SampleRow
from fluxexp.tracking.series import RANKS_COLUMNS, RANKS_TABLE, ranks_table, series
from fluxexp.tracking.summary_values import summary_values
from fluxexp.tracking.tracker import NEEDS_DIRECTORY, NullTracker, Tracker, open_tracker
from fluxexp.tracking.tracking_report import TrackingReport
from fluxexp.tracking.wandb_environment import run_name

__all__ = [
    "NEEDS_DIRECTORY",
    "RANKS_COLUMNS",
    "RANKS_TABLE",
    "THUMBNAIL_PX",
    "NullTracker",
    "SampleRow",
    "Tracker",
    "TrackingReport",
    "open_tracker",
    "ranks_table",
    "run_name",
    "series",
    "summary_values",
]
