"""Signed distances to shapes: negative inside, zero on the edge. Knows no pixels and no colours.

Points come as float64 arrays `x` (to the right) and `y` (down) that broadcast together. Shapes are upright and fit the
unit circle, except `capsule`. Formulas after Inigo Quilez, https://iquilezles.org/articles/distfunctions2d/.
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
    """A square of half side 0.74."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.74


def cross(x: Float64Array, y: Float64Array) -> Float64Array:
    """A plus sign with arms 0.56 wide."""
    across, along = np.abs(x), np.abs(y)
    return np.minimum(
        np.maximum(across - 0.95, along - 0.28),
        np.maximum(across - 0.28, along - 0.95),
    )


def diamond(x: Float64Array, y: Float64Array) -> Float64Array:
    """A rhombus of half diagonals 0.66 and 1: too slim to be a turned square."""
    return (np.abs(x) / 0.66 + np.abs(y) - 1.0) / math.hypot(1 / 0.66, 1.0)


def hexagon(x: Float64Array, y: Float64Array) -> Float64Array:
    """A regular hexagon of circumradius 0.98, a corner on top."""
    across, along = np.abs(x), np.abs(y)
    apothem = 0.98 * math.cos(math.pi / 6)
    return np.maximum(across, 0.5 * across + math.cos(math.pi / 6) * along) - apothem


def triangle(x: Float64Array, y: Float64Array) -> Float64Array:
    """An equilateral triangle of circumradius 1, a corner on top."""
    return np.maximum(y, math.cos(math.pi / 6) * np.abs(x) - 0.5 * y) - 0.5


def star(x: Float64Array, y: Float64Array) -> Float64Array:
    """A star of five points, a point on top: one edge, mirrored ten times around."""
    turn = math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + turn) % (2 * turn) - turn)
    radius = np.hypot(x, y)
    inner_x, inner_y = 0.46 * math.cos(turn), 0.46 * math.sin(turn)
    length = math.hypot(1 - inner_x, inner_y)
    return ((radius * np.cos(angle) - 1) * inner_y + radius * np.sin(angle) * (1 - inner_x)) / length


def heart(x: Float64Array, y: Float64Array) -> Float64Array:
    """A heart, its tip below."""
    scale = 1.62
    u, v = np.abs(x) / scale, (0.92 - y) / scale
    lobe = np.hypot(u - 0.25, v - 0.75) - math.sqrt(2) / 4
    along = 0.5 * np.maximum(u + v, 0)
    body = np.minimum(np.hypot(u, v - 1), np.hypot(u - along, v - along)) * np.sign(u - v)
    return np.where(u + v > 1, lobe, body) * scale


def crescent(x: Float64Array, y: Float64Array) -> Float64Array:
    """A moon, open to the right: a disc less a smaller disc."""
    return np.maximum(np.hypot(x, y) - 0.96, 0.74 - np.hypot(x - 0.46, y))


def capsule(
    x: Float64Array, y: Float64Array, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Float64Array:
    """A stroke of half width `radius` from `start` to `end`, each (x, y), with round ends."""
    run, rise = end[0] - start[0], end[1] - start[1]
    dx, dy = x - start[0], y - start[1]
    along = np.clip((dx * run + dy * rise) / max(run * run + rise * rise, 1e-12), 0, 1)
    return np.hypot(dx - along * run, dy - along * rise) - radius


DISTANCES: dict[str, Distance] = {
    function.__name__: function
    for function in (circle, square, triangle, star, ring, cross, heart, crescent, hexagon, diamond)
}
"""The distance of each name in `palette.SHAPES`."""
