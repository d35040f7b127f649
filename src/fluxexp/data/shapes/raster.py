"""From distances to pixels, with analytic anti-aliasing and integer blending.

Rounding is where machines could differ. So a coverage is rounded once, at a threshold that no exact half can hit, to
an alpha in 0..255; everything after that is integer arithmetic.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fluxexp.arrays import Float64Array, ImageArray
from fluxexp.data.shapes.palette import RGB

AlphaArray = NDArray[np.uint16]
"""Opacity from 0 to 255 of each pixel, of shape (height, width): uint16, so that products do not overflow."""


@lru_cache(maxsize=8)
def pixel_grid(height: int, width: int) -> tuple[Float64Array, Float64Array]:
    """Centres of the pixels where the short side is 1: x of shape (1, width), y of shape (height, 1), read-only."""
    short = min(height, width)
    x = ((np.arange(width) + 0.5) / short)[None, :]
    y = ((np.arange(height) + 0.5) / short)[:, None]
    x.flags.writeable = y.flags.writeable = False
    return x, y


def alpha(share: Float64Array) -> AlphaArray:
    """Shares in [0, 1] (others are clipped) as whole numbers in 0..255."""
    return np.floor(np.clip(share, 0, 1) * 255 + (0.5 + 1e-6)).astype(np.uint16)


def coverage(distance: Float64Array, pixel: float) -> Float64Array:
    """Share of each pixel inside a shape: `distance` to its edge, `pixel` the side of a pixel in the same unit."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def stripes(position: Float64Array, period: float, duty: float, pixel: float) -> Float64Array:
    """Share of each pixel on stripes across `position`, of which `duty` of each `period` is stripe."""
    offset = np.abs(position / period - np.floor(position / period) - 0.5)
    return coverage((offset - duty / 2) * period, pixel)


def dots(x: Float64Array, y: Float64Array, period: float, radius: float, pixel: float) -> Float64Array:
    """Share of each pixel on dots of `radius` at the points of a square lattice through the origin."""
    dx = x - np.floor(x / period + 0.5) * period
    dy = y - np.floor(y / period + 0.5) * period
    return coverage(np.hypot(dx, dy) - radius, pixel)


def mix(below: ImageArray | RGB, above: ImageArray | RGB, weight: AlphaArray) -> ImageArray:
    """`above` over `below` with `weight` of shape (h, w): uint8 of shape (h, w, 3)."""
    top, bottom = np.asarray(above, np.uint16), np.asarray(below, np.uint16)
    share = weight[..., None]
    return ((top * share + bottom * (255 - share) + 127) // 255).astype(np.uint8)
