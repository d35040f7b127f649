"""Signed distance functions of shapes: negative inside, zero on the edge, positive outside.

All functions take float64 arrays `x` (to the right) and `y` (down) that broadcast together, and return an array of the
broadcast shape. Except for `capsule`, a shape is upright and fits into the unit circle. The formulas follow Inigo
Quilez, https://iquilezles.org/articles/distfunctions2d/.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fluxexp.arrays import Float64Array

Distance = Callable[[Float64Array, Float64Array], Float64Array]


def circle(x: Float64Array, y: Float64Array) -> Float64Array:
    """A disc of radius 0.92."""
    return np.hypot(x, y) - 0.92


def ring(x: Float64Array, y: Float64Array) -> Float64Array:
    """A band between the radii 0.46 and 0.96."""
    return np.abs(np.hypot(x, y) - 0.71) - 0.25


def square(x: Float64Array, y: Float64Array) -> Float64Array:
    """A square with sides of 1.48."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.74


def cross(x: Float64Array, y: Float64Array) -> Float64Array:
    """A plus sign with arms 0.56 wide."""
    across, along = np.abs(x), np.abs(y)
    return np.minimum(
        np.maximum(across - 0.95, along - 0.28),
        np.maximum(across - 0.28, along - 0.95),
    )


def diamond(x: Float64Array, y: Float64Array) -> Float64Array:
    """A rhombus with half diagonals of 0.66 and 1, so that it does not look like a rotated square."""
    return (np.abs(x) / 0.66 + np.abs(y) - 1.0) / math.hypot(1 / 0.66, 1.0)


def hexagon(x: Float64Array, y: Float64Array) -> Float64Array:
    """A regular hexagon of circumradius 0.98, with a corner on top."""
    across, along = np.abs(x), np.abs(y)
    apothem = 0.98 * math.cos(math.pi / 6)
    return np.maximum(across, 0.5 * across + math.cos(math.pi / 6) * along) - apothem


def triangle(x: Float64Array, y: Float64Array) -> Float64Array:
    """An equilateral triangle of circumradius 1, with a corner on top."""
    return np.maximum(y, math.cos(math.pi / 6) * np.abs(x) - 0.5 * y) - 0.5


def star(x: Float64Array, y: Float64Array) -> Float64Array:
    """A star with five points, one of them on top."""
    turn = math.pi / 5
    # Fold the plane onto one tenth of the star: its ten edges are rotations and mirror images of one edge.
    angle = np.abs((np.arctan2(x, -y) + turn) % (2 * turn) - turn)
    radius = np.hypot(x, y)
    inner_x, inner_y = 0.46 * math.cos(turn), 0.46 * math.sin(turn)
    length = math.hypot(1 - inner_x, inner_y)
    return ((radius * np.cos(angle) - 1) * inner_y + radius * np.sin(angle) * (1 - inner_x)) / length


def heart(x: Float64Array, y: Float64Array) -> Float64Array:
    """A heart with its tip at the bottom."""
    scale = 1.62
    u, v = np.abs(x) / scale, (0.92 - y) / scale
    lobe = np.hypot(u - 0.25, v - 0.75) - math.sqrt(2) / 4
    along = 0.5 * np.maximum(u + v, 0)
    body = np.minimum(np.hypot(u, v - 1), np.hypot(u - along, v - along)) * np.sign(u - v)
    return np.where(u + v > 1, lobe, body) * scale


def crescent(x: Float64Array, y: Float64Array) -> Float64Array:
    """A crescent moon, open to the right: a disc minus a smaller disc."""
    return np.maximum(np.hypot(x, y) - 0.96, 0.74 - np.hypot(x - 0.46, y))


def capsule(
    x: Float64Array, y: Float64Array, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Float64Array:
    """A stroke with round ends from `start` to `end`, each (x, y). Its width is twice `radius`."""
    run, rise = end[0] - start[0], end[1] - start[1]
    dx, dy = x - start[0], y - start[1]
    along = np.clip((dx * run + dy * rise) / max(run * run + rise * rise, 1e-12), 0, 1)
    return np.hypot(dx - along * run, dy - along * rise) - radius


DISTANCES: dict[str, Distance] = {
    function.__name__: function
    for function in (circle, square, triangle, star, ring, cross, heart, crescent, hexagon, diamond)
}
"""The signed distance function of each shape in `palette.SHAPES`, by name."""
