"""Compares the points of a sweep: paired differences, cost, and which point is good enough. Imports no torch."""

from fluxexp.compare.points_table import point_labels, points_table
from fluxexp.compare.run_figures import run_figures
from fluxexp.compare.run_view import RunView
from fluxexp.compare.settings import references, varied_settings
from fluxexp.compare.sweep_view import PointView, sweep_figures

__all__ = [
    "PointView",
    "RunView",
    "point_labels",
    "points_table",
    "references",
    "run_figures",
    "sweep_figures",
    "varied_settings",
]
