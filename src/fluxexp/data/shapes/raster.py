"""Converts distances to pixels, with analytic anti-aliasing and integer blending.

Scenes must have the same pixels on every machine, but floating-point results can differ in their last bits. So a
coverage is rounded only once, to an opacity from 0 to 255. The threshold lies slightly off one half, so that a value of
exactly one half is rounded the same way everywhere. Everything after that is integer arithmetic.
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
    """Pixel centers in units of the short side: x of shape (1, width) and y of shape (height, 1), read-only."""
    short = min(height, width)
    x = ((np.arange(width) + 0.5) / short)[None, :]
    y = ((np.arange(height) + 0.5) / short)[:, None]
    x.flags.writeable = y.flags.writeable = False
    return x, y


def alpha(fraction: Float64Array) -> AlphaArray:
    """Opacity from 0 to 255 for each `fraction`, which is clipped to [0, 1]."""
    return np.floor(np.clip(fraction, 0, 1) * 255 + (0.5 + 1e-6)).astype(np.uint16)


def coverage(distance: Float64Array, pixel: float) -> Float64Array:
    """Approximate fraction of each pixel that is inside a shape.

    `distance` is the signed distance to the edge of the shape. `pixel` is the side of a pixel, in the same unit.
    """
    return np.clip(0.5 - distance / pixel, 0, 1)


def stripes(position: Float64Array, period: float, duty: float, pixel: float) -> Float64Array:
    """Fraction of each pixel that is on a stripe. A stripe takes the fraction `duty` of each `period` of `position`."""
    offset = np.abs(position / period - np.floor(position / period) - 0.5)
    return coverage((offset - duty / 2) * period, pixel)


def dots(x: Float64Array, y: Float64Array, period: float, radius: float, pixel: float) -> Float64Array:
    """Fraction of each pixel that is on a dot of `radius`. The dots form a square lattice through the origin."""
    dx = x - np.floor(x / period + 0.5) * period
    dy = y - np.floor(y / period + 0.5) * period
    return coverage(np.hypot(dx, dy) - radius, pixel)


def mix(below: ImageArray | RGB, above: ImageArray | RGB, weight: AlphaArray) -> ImageArray:
    """Blend `above` over `below` with the opacity `weight` of shape (h, w). Returns RGB of shape (h, w, 3)."""
    top, bottom = np.asarray(above, np.uint16), np.asarray(below, np.uint16)
    opacity = weight[..., None]
    # Round to nearest. The largest intermediate value, 255 * 255 + 127, fits into uint16.
    return ((top * opacity + bottom * (255 - opacity) + 127) // 255).astype(np.uint8)
