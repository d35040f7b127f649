"""`metrics=full`: scores by networks, whose weights come from a path or a hub. Needs the extra `metrics`."""

from fluxexp.metrics.full.making import Full, make_full
from fluxexp.metrics.full.weights import find_weights

__all__ = ["Full", "find_weights", "make_full"]
