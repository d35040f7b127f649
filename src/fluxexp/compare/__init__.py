"""Compares the points of a sweep: paired differences, cost, and which point is good enough. Imports no torch."""

from fluxexp.compare.run_figures import run_figures
from fluxexp.compare.run_view import RunView
from fluxexp.compare.settings import references
from fluxexp.compare.sweep_view import PointView, sweep_figures

__all__ = ["PointView", "RunView", "references", "run_figures", "sweep_figures"]
