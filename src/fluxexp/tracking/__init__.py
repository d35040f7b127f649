"""Weights & Biases as a view of a run: slow, offline or broken, it never stops or slows the run.

W&B lives in a process of its own (`child.py`), fed through a pipe by `Tracker`. wandb is imported in no other process.
"""

from fluxexp.tracking.sample_row import THUMBNAIL_PX, SampleRow
from fluxexp.tracking.series import RANKS_COLUMNS, RANKS_TABLE, ranks_table, series
from fluxexp.tracking.summary_values import summary_values
from fluxexp.tracking.tracker import NullTracker, Tracker, open_tracker
from fluxexp.tracking.tracking_report import TrackingReport

__all__ = [
    "RANKS_COLUMNS",
    "RANKS_TABLE",
    "THUMBNAIL_PX",
    "NullTracker",
    "SampleRow",
    "Tracker",
    "TrackingReport",
    "open_tracker",
    "ranks_table",
    "series",
    "summary_values",
]
