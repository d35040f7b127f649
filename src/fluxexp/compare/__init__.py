"""What a sweep was run to decide: paired comparisons, what each point costs, and which is enough. Imports no torch."""

from fluxexp.compare.run_view import RunView, run_figures
from fluxexp.compare.settings import references
from fluxexp.compare.sweep_view import PointView, sweep_figures

__all__ = ["PointView", "RunView", "references", "run_figures", "sweep_figures"]
