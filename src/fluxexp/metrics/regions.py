"""Parts of an image around its masked region."""

from __future__ import annotations

import numpy as np

from fluxexp.arrays import BoolArray

Region = tuple[slice, slice]
"""Rows and columns of an image."""


def bounding_box(masked_region: BoolArray, margin: int) -> Region:
    """The bounding box of the masked region, with `margin` more pixels on each side if possible."""
    rows, columns = (np.flatnonzero(masked_region.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
        slice(max(0, columns[0] - margin), columns[-1] + 1 + margin),
    )
