"""From distances to pixels, with analytic anti-aliasing and integer blending.

Rounding is where machines could differ. So a coverage is rounded once, at a threshold that no exact half can hit, to
an alpha in 0..255; everything after that is integer arithmetic.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fluxexp.data.shapes.distance import FloatArray
from fluxexp.data.shapes.palette import RGB

Alphas = NDArray[np.uint16]
RasterArray = NDArray[np.uint8]


@lru_cache(maxsize=8)
def pixel_grid(height: int, width: int) -> tuple[FloatArray, FloatArray]:
    """Centres of the pixels where the short side is 1: x of shape (1, width), y of shape (height, 1), read-only."""
    short = min(height, width)
    x = ((np.arange(width) + 0.5) / short)[None, :]
    y = ((np.arange(height) + 0.5) / short)[:, None]
    x.flags.writeable = y.flags.writeable = False
    return x, y


def alpha(share: FloatArray) -> Alphas:
    """Shares in [0, 1] (others are clipped) as whole numbers in 0..255."""
    return np.floor(np.clip(share, 0, 1) * 255 + (0.5 + 1e-6)).astype(np.uint16)


def coverage(distance: FloatArray, pixel: float) -> FloatArray:
    """Share of each pixel inside a shape: `distance` to its edge, `pixel` the side of a pixel in the same unit."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def stripes(position: FloatArray, period: float, duty: float, pixel: float) -> FloatArray:
    """Share of each pixel on stripes across `position`, of which `duty` of each `period` is stripe."""
    offset = np.abs(position / period - np.floor(position / period) - 0.5)
    return coverage((offset - duty / 2) * period, pixel)


def dots(x: FloatArray, y: FloatArray, period: float, radius: float, pixel: float) -> FloatArray:
    """Share of each pixel on dots of `radius` at the points of a square lattice through the origin."""
    dx = x - np.floor(x / period + 0.5) * period
    dy = y - np.floor(y / period + 0.5) * period
    return coverage(np.hypot(dx, dy) - radius, pixel)


def mix(below: RasterArray | RGB, above: RasterArray | RGB, weight: Alphas) -> RasterArray:
    """`above` over `below` with `weight` of shape (h, w): uint8 of shape (h, w, 3)."""
    top, bottom = np.asarray(above, np.uint16), np.asarray(below, np.uint16)
    share = weight[..., None]
    return ((top * share + bottom * (255 - share) + 127) // 255).astype(np.uint8)
