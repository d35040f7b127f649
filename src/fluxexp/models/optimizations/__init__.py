"""Applies optimizations to a loaded FLUX.1 model.

`config/optimization_catalog.py` declares them. Each module `apply_*.py` has one function per optimization of its topic.
To add one, declare it, add its field to `OptimizationConfig`, and add its function to a topic. A name that is missing
in one of these places is an error at import.
"""

from fluxexp.models.optimizations.apply import apply_optimizations
from fluxexp.models.optimizations.step_cache_change import change_step_cache

__all__ = ["apply_optimizations", "change_step_cache"]
