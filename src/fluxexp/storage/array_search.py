"""Finds many numbers in an array at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def find_each(wanted: NDArray[Any], known: NDArray[Any]) -> NDArray[np.intp]:
    """For each number of `wanted`, the first index of the same number in `known`, or -1. Neither must be sorted."""
    places = np.full(len(wanted), -1, dtype=np.intp)
    if not len(known):
        return places
    order = np.argsort(known, kind="stable")
    ordered, queries = known[order], np.argsort(wanted)  # a search for sorted numbers reads memory in order
    found = np.minimum(np.searchsorted(ordered, wanted[queries]), len(known) - 1)
    is_same = ordered[found] == wanted[queries]
    places[queries[is_same]] = order[found[is_same]]
    return places
