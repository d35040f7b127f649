"""Outlines of objects as arrays: closing, and the templates of all shapes on a grid of GRID x GRID points."""

from __future__ import annotations

import math
import threading
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fluxexp.arrays import BoolArray, Float32Array, Float64Array
from fluxexp.data.shapes.distance import DISTANCES
from fluxexp.data.shapes.palette import SHAPES
from fluxexp.data.shapes.scene_layout import MAX_ROTATION, MAX_ROTATIONS

GRID = 40
"""Outlines are compared on a grid of GRID x GRID points."""
REACH = 1.75
"""Half the side of this grid, in units of the square root of the outline's area."""
ROTATION_STEP = math.radians(6)
"""Step between the rotations of the templates, in radians."""
SCALES = (0.94, 1.0, 1.06)
"""Scales of the templates relative to the outline."""
_lock = threading.Lock()


def close(silhouette: BoolArray, radius: int) -> BoolArray:
    """Morphological closing: fill gaps up to twice `radius` wide, such as stripes in the color of the background."""
    return ~dilate(~dilate(np.pad(silhouette, radius), radius), radius)[radius:-radius, radius:-radius]


def dilate(silhouette: BoolArray, radius: int) -> BoolArray:
    """Morphological dilation by a disc: each row of the disc is a dilation along the row, and longer rows contain
    shorter ones."""
    height, width = silhouette.shape
    reaches = [math.isqrt(radius * radius - down * down) for down in range(radius + 1)]
    along = np.pad(silhouette, ((radius, radius), (0, 0)))
    source, grown = along.copy(), np.zeros_like(silhouette)
    for across in range(radius + 1):
        if 0 < across < width:
            along[:, across:] |= source[:, :-across]
            along[:, :-across] |= source[:, across:]
        for down in (down for down, reach in enumerate(reaches) if reach == across):
            for top in {radius - down, radius + down}:
                grown |= along[top : top + height]
    return grown


def normalized(outline: BoolArray, scale: float = 1.0) -> Float32Array:
    """The outline on a GRID x GRID grid, shifted to its centroid and scaled by its area, and then by `scale`."""
    rows, columns = np.nonzero(outline)
    unit = math.sqrt(len(rows)) / scale
    offsets = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH * unit
    return _sample(outline.astype(np.float32), rows.mean() + offsets, columns.mean() + offsets)


def _sample(values: Float32Array, rows: Float64Array, columns: Float64Array) -> Float32Array:
    """Bilinear samples of `values` on the grid of `rows` x `columns`. Values outside of the array are 0."""
    down = _interpolated(np.pad(values, 1), rows)
    return np.ascontiguousarray(_interpolated(np.ascontiguousarray(down.T), columns).T)


def _interpolated(padded: Float32Array, positions: Float64Array) -> Float32Array:
    """Rows of `padded` at `positions`, interpolated linearly. `padded` has one more row at both ends.

    It is no matrix product, because a BLAS library would start its own threads for it in each scoring thread.
    """
    length = len(padded) - 2
    clipped = np.clip(positions + 1, 0, length + 1)
    low = np.minimum(clipped.astype(np.intp), length)
    fraction = (clipped - low).astype(np.float32)[:, None]
    interpolated: Float32Array = padded[low] * (1 - fraction) + padded[low + 1] * fraction
    return interpolated


def templates() -> tuple[Float32Array, Float32Array, NDArray[np.intp]]:
    """Every shape at every rotation and scale.

    Returns the templates, of shape (number, GRID * GRID), and for each template its area and its index in `SHAPES`.
    """
    with _lock:  # threads that need them at the same time would each compute them
        return _all_templates()


@cache
def _all_templates() -> tuple[Float32Array, Float32Array, NDArray[np.intp]]:
    found, owners = [], []
    for index, shape in enumerate(SHAPES):
        turn = MAX_ROTATIONS.get(shape, MAX_ROTATION)
        turns = 0 if turn == 0 else round(turn / ROTATION_STEP)
        for step in range(-turns, turns + 1):
            drawn = _drawn(shape, step * ROTATION_STEP)
            for scale in SCALES:
                found.append(normalized(drawn, scale).ravel())
                owners.append(index)
    stacked = np.stack(found)
    return stacked, stacked.sum(axis=1), np.array(owners)


def _drawn(shape: str, angle: float) -> BoolArray:
    """The outline of a shape, rotated by `angle` in radians and closed like a recognized outline."""
    fine = 160
    axis = ((np.arange(fine) + 0.5) / fine * 2 - 1) * 1.1
    x, y = axis[None, :], axis[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    return close(DISTANCES[shape](cos * x + sin * y, cos * y - sin * x) < 0, 6)
