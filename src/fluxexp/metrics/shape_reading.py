"""Reads colour and shape of a painted object back from pixels: a check of `dataset=shapes` without any network.

The colour is the palette's that most object pixels are nearest to; the shape is the one whose outline, at any
rotation it can have and any size, overlaps best with the object's own. Knows no captions, no models and no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fluxexp.arrays import BoolArray, Float32Array, Float64Array, ImageArray
from fluxexp.data.shapes.distance import DISTANCES
from fluxexp.data.shapes.palette import COLORS, INKS, SHAPES, TONE_STEP, TONES
from fluxexp.data.shapes.scene_layout import MAX_ROTATION, MAX_ROTATIONS

NEAR = 46.0
"""Largest distance in RGB from the colours between a background and an object's colour at which a pixel is part of
the object."""
LEAST_SHARE = 0.006
"""Objects smaller than this share of the picture's short side squared are none: the smallest drawn covers 0.017."""
GRID = 40
"""Side of the square in which outlines are compared."""
REACH = 1.75
"""Half side of that square, in units of the square root of the outline's area."""
ROTATION_STEP = math.radians(6)
SCALES = (0.94, 1.0, 1.06)


@dataclass(frozen=True, slots=True)
class ShapeReading:
    """What was found. `color` and `shape` are None where there is no object."""

    color: str | None
    shape: str | None
    overlaps: dict[str, float]
    """Intersection over union of the object's outline with the best fitting one of each shape; empty without object."""


def read_object(image: ImageArray, mask: ImageArray | None = None, color: str | None = None) -> ShapeReading:
    """The object that was painted in the hole.

    Args:
        image: RGB of shape (height, width, 3).
        mask: of shape (height, width), above 127 in the hole; None searches the whole picture.
        color: look for the object of this colour, instead of the one of which there is most.
    """
    masked_region = np.ones(image.shape[:2], bool) if mask is None else mask > 127
    pixels = image.astype(np.float32)
    tone = _background(pixels, masked_region)
    object_pixels = masked_region & (_distance_to_tone(pixels, tone) > NEAR / 2)
    least = LEAST_SHARE * min(masked_region.shape) ** 2
    if color is None:
        color = _prevailing_color(pixels[object_pixels], least)
        if color is None:
            return ShapeReading(None, None, {})
    outline = _outline(pixels, masked_region, color, tone)
    if np.count_nonzero(outline) < least:
        return ShapeReading(None, None, {})
    overlaps = _overlaps(outline)
    return ShapeReading(color, max(overlaps, key=lambda shape: overlaps[shape]), overlaps)


def _background(pixels: Float32Array, masked_region: BoolArray) -> Float32Array:
    """The tone that most pixels are nearest to: around the hole, or in all of the picture."""
    around = (
        pixels[~masked_region] if np.count_nonzero(~masked_region) > masked_region.size // 8 else pixels.reshape(-1, 3)
    )
    tones = np.array(list(TONES.values()), np.float32)
    distances = np.stack([_distance_to_tone(around[::3], tone) for tone in tones])
    near = distances.argmin(axis=0)[distances.min(axis=0) < NEAR / 2]
    tone: Float32Array = tones[np.bincount(near, minlength=len(tones)).argmax()]
    return tone


def _distance_to_tone(pixels: Float32Array, tone: Float32Array) -> Float32Array:
    """To the nearest of a background's colours: its tone, darker or lighter by up to TONE_STEP in every channel."""
    return _distance_to_line(pixels, tone - TONE_STEP, tone + TONE_STEP)


def _distance_to_line(pixels: Float32Array, start: Float32Array, end: Float32Array) -> Float32Array:
    run = end - start
    along = np.clip((pixels - start) @ run / (run @ run), 0, 1)
    distance: Float32Array = np.linalg.norm(pixels - start - along[..., None] * run, axis=-1)
    return distance


def _prevailing_color(pixels: Float32Array, least: float) -> str | None:
    """The name most pixels are nearest to, in its colour or its ink, where an ink counts as much as it is seen."""
    if len(pixels) < least:
        return None
    names = list(COLORS)
    colors = np.array([*COLORS.values(), *(INKS[name] for name in names)], np.float32)
    distances = np.linalg.norm(pixels[:, None] - colors, axis=-1)
    votes = np.bincount(distances.argmin(axis=1) % len(names), minlength=len(names))
    # An ink is like another colour's edge pixels. So a colour's own pixels decide, inks only add.
    own = np.bincount(distances[:, : len(names)].argmin(axis=1)[distances.min(axis=1) < NEAR], minlength=len(names))
    best = int((votes + 0.5 * own).argmax())
    return names[best] if votes[best] >= least else None


def _outline(pixels: Float32Array, masked_region: BoolArray, color: str, tone: Float32Array) -> BoolArray:
    """The object as one silhouette: its colour, its ink and what is between them and the background by half."""
    paint, ink = np.array(COLORS[color], np.float32), np.array(INKS[color], np.float32)
    inside = _distance_to_line(pixels, paint, ink) < NEAR
    edge = np.zeros_like(inside)
    for end in (paint, ink):
        run = end - tone
        share = (pixels - tone) @ run / max(float(run @ run), 1.0)
        off_line = np.linalg.norm(pixels - tone - share[..., None] * run, axis=-1)
        edge |= (share > 0.5) & (off_line < NEAR) & (np.linalg.norm(run) > 2 * NEAR)
    nearer = _distance_to_line(pixels, paint, ink) < _distance_to_tone(pixels, tone)
    return _close(((inside & nearer) | edge) & masked_region, max(1, round(min(masked_region.shape) / 64)))


def _close(silhouette: BoolArray, radius: int) -> BoolArray:
    """Fill gaps up to twice `radius` wide, such as stripes in the background's colour."""
    return ~_grow(~_grow(np.pad(silhouette, radius), radius), radius)[radius:-radius, radius:-radius]


def _grow(silhouette: BoolArray, radius: int) -> BoolArray:
    """Dilation by a disc."""
    height, width = silhouette.shape
    padded = np.pad(silhouette, radius)
    grown = np.zeros_like(silhouette)
    for down in range(-radius, radius + 1):
        for across in range(-radius, radius + 1):
            if down * down + across * across <= radius * radius + 0.5:
                grown |= padded[radius + down :, radius + across :][:height, :width]
    return grown


def _overlaps(outline: BoolArray) -> dict[str, float]:
    """Best intersection over union with each shape."""
    templates, owners = _templates()
    found = _normalised(outline).ravel()
    shared = templates @ found
    union = templates.sum(axis=1) + found.sum() - shared
    scores = shared / union
    return {shape: float(scores[owners == index].max()) for index, shape in enumerate(SHAPES)}


def _normalised(outline: BoolArray) -> Float32Array:
    """The outline with its centroid in the middle and its area the unit, GRID x GRID, bilinear."""
    rows, columns = np.nonzero(outline)
    unit = math.sqrt(len(rows))
    offsets = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH * unit
    return _sample(outline.astype(np.float32), rows.mean() + offsets, columns.mean() + offsets)


def _sample(values: Float32Array, rows: Float64Array, columns: Float64Array) -> Float32Array:
    """Bilinear, zero outside, on the grid of `rows` x `columns`."""
    across, down = _weights(columns, values.shape[1]), _weights(rows, values.shape[0])
    return (down @ np.pad(values, 1) @ across.T).astype(np.float32)


def _weights(positions: Float64Array, length: int) -> Float32Array:
    """Matrix (positions, length + 2) that interpolates between neighbours of a row with a zero at both ends."""
    clipped = np.clip(positions + 1, 0, length + 1)
    low = np.minimum(clipped.astype(np.intp), length)
    share = (clipped - low).astype(np.float32)
    weights = np.zeros((len(positions), length + 2), np.float32)
    rows = np.arange(len(positions))
    weights[rows, low] = 1 - share
    weights[rows, low + 1] += share
    return weights


@lru_cache(maxsize=1)
def _templates() -> tuple[Float32Array, NDArray[np.intp]]:
    """Every shape at every rotation and scale: (templates, GRID * GRID), and the index of each one's shape."""
    templates, owners = [], []
    for index, shape in enumerate(SHAPES):
        turn = MAX_ROTATIONS.get(shape, MAX_ROTATION)
        turns = 0 if turn == 0 else round(turn / ROTATION_STEP)
        for step in range(-turns, turns + 1):
            for scale in SCALES:
                templates.append(_template(shape, step * ROTATION_STEP, scale).ravel())
                owners.append(index)
    return np.stack(templates), np.array(owners)


def _template(shape: str, angle: float, scale: float) -> Float32Array:
    fine = 160
    axis = ((np.arange(fine) + 0.5) / fine * 2 - 1) * 1.1
    x, y = axis[None, :], axis[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    drawn = DISTANCES[shape](cos * x + sin * y, cos * y - sin * x) < 0
    drawn = _close(drawn, 6)
    rows, columns = np.nonzero(drawn)
    unit = math.sqrt(len(rows)) / scale
    offsets = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH * unit
    return _sample(drawn.astype(np.float32), rows.mean() + offsets, columns.mean() + offsets)
