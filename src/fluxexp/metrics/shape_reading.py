"""Recognizes the color and shape of a painted object from its pixels, for `dataset=shapes`. Needs no network.

The color is the palette color that is nearest to most object pixels. The shape is the one whose outline has the largest
overlap with the outline of the object, over all rotations that the dataset uses and several scales.
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
"""RGB distance up to which a pixel matches a color. Backgrounds use half of it."""
MIN_AREA = 0.006
"""Smallest area of an object, as a fraction of the squared short side. The dataset's smallest object has 0.017."""
GRID = 40
"""Outlines are compared on a grid of GRID x GRID points."""
REACH = 1.75
"""Half the side of this grid, in units of the square root of the outline's area."""
ROTATION_STEP = math.radians(6)
"""Step between the rotations of the templates, in radians."""
SCALES = (0.94, 1.0, 1.06)
"""Scales of the templates relative to the outline."""


@dataclass(frozen=True, slots=True)
class ShapeReading:
    """The recognized object. `color` and `shape` are None if there is no object."""

    color: str | None
    shape: str | None
    overlaps: dict[str, float]
    """Largest intersection over union of the outline with the templates of each shape; empty without an object."""


def read_object(image: ImageArray, mask: ImageArray | None = None, color: str | None = None) -> ShapeReading:
    """Recognize the object in the masked region.

    Args:
        image: RGB of shape (height, width, 3).
        mask: of shape (height, width), above 127 in the masked region; None searches the whole image.
        color: search an object of this color; None searches the most frequent color.
    """
    masked_region = np.ones(image.shape[:2], bool) if mask is None else mask > 127
    pixels = image.astype(np.float32)
    tone = _background(pixels, masked_region)
    object_pixels = masked_region & (_distance_to_tone(pixels, tone) > NEAR / 2)
    min_area = MIN_AREA * min(masked_region.shape) ** 2
    if color is None:
        color = _prevailing_color(pixels[object_pixels], min_area)
        if color is None:
            return ShapeReading(None, None, {})
    outline = _outline(pixels, masked_region, color, tone)
    if np.count_nonzero(outline) < min_area:
        return ShapeReading(None, None, {})
    overlaps = _overlaps(outline)
    return ShapeReading(color, max(overlaps, key=lambda shape: overlaps[shape]), overlaps)


def _background(pixels: Float32Array, masked_region: BoolArray) -> Float32Array:
    """The most frequent background tone in the unmasked region or, if that is small, in the whole image."""
    around = (
        pixels[~masked_region] if np.count_nonzero(~masked_region) > masked_region.size // 8 else pixels.reshape(-1, 3)
    )
    tones = np.array(list(TONES.values()), np.float32)
    distances = np.stack([_distance_to_tone(around[::3], tone) for tone in tones])
    near = distances.argmin(axis=0)[distances.min(axis=0) < NEAR / 2]
    tone: Float32Array = tones[np.bincount(near, minlength=len(tones)).argmax()]
    return tone


def _distance_to_tone(pixels: Float32Array, tone: Float32Array) -> Float32Array:
    """RGB distance to the nearest color of a background, which is its tone plus or minus up to TONE_STEP."""
    return _distance_to_line(pixels, tone - TONE_STEP, tone + TONE_STEP)


def _distance_to_line(pixels: Float32Array, start: Float32Array, end: Float32Array) -> Float32Array:
    """Distance to the line segment from `start` to `end` in RGB space. `pixels` has shape (..., 3)."""
    run = end - start
    along = np.clip((pixels - start) @ run / (run @ run), 0, 1)
    distance: Float32Array = np.linalg.norm(pixels - start - along[..., None] * run, axis=-1)
    return distance


def _prevailing_color(pixels: Float32Array, min_area: float) -> str | None:
    """The color nearest to most of `pixels`, of shape (number, 3). None if it has fewer than `min_area` pixels."""
    if len(pixels) < min_area:
        return None
    names = list(COLORS)
    colors = np.array([*COLORS.values(), *(INKS[name] for name in names)], np.float32)
    distances = np.linalg.norm(pixels[:, None] - colors, axis=-1)
    votes = np.bincount(distances.argmin(axis=1) % len(names), minlength=len(names))
    # Edge pixels of one color can look like the ink of another color. So pixels of the color itself have more weight.
    own = np.bincount(distances[:, : len(names)].argmin(axis=1)[distances.min(axis=1) < NEAR], minlength=len(names))
    best = int((votes + 0.5 * own).argmax())
    return names[best] if votes[best] >= min_area else None


def _outline(pixels: Float32Array, masked_region: BoolArray, color: str, tone: Float32Array) -> BoolArray:
    """Silhouette of the object: pixels of its color or its ink, and edge pixels that are at least half object."""
    paint, ink = np.array(COLORS[color], np.float32), np.array(INKS[color], np.float32)
    inside = _distance_to_line(pixels, paint, ink) < NEAR
    edge = np.zeros_like(inside)
    for end in (paint, ink):
        run = end - tone
        # An edge pixel is a mix of the background and the object: it lies near the line between the two colors.
        fraction = (pixels - tone) @ run / max(float(run @ run), 1.0)
        off_line = np.linalg.norm(pixels - tone - fraction[..., None] * run, axis=-1)
        edge |= (fraction > 0.5) & (off_line < NEAR) & (np.linalg.norm(run) > 2 * NEAR)
    nearer = _distance_to_line(pixels, paint, ink) < _distance_to_tone(pixels, tone)
    return _close(((inside & nearer) | edge) & masked_region, max(1, round(min(masked_region.shape) / 64)))


def _close(silhouette: BoolArray, radius: int) -> BoolArray:
    """Morphological closing: fill gaps up to twice `radius` wide, such as stripes in the color of the background."""
    return ~_dilate(~_dilate(np.pad(silhouette, radius), radius), radius)[radius:-radius, radius:-radius]


def _dilate(silhouette: BoolArray, radius: int) -> BoolArray:
    """Morphological dilation by a disc."""
    height, width = silhouette.shape
    padded = np.pad(silhouette, radius)
    grown = np.zeros_like(silhouette)
    for down in range(-radius, radius + 1):
        for across in range(-radius, radius + 1):
            if down * down + across * across <= radius * radius + 0.5:
                grown |= padded[radius + down :, radius + across :][:height, :width]
    return grown


def _overlaps(outline: BoolArray) -> dict[str, float]:
    """Largest intersection over union with the templates of each shape."""
    templates, owners = _templates()
    found = _normalized(outline).ravel()
    shared = templates @ found
    union = templates.sum(axis=1) + found.sum() - shared
    scores = shared / union
    return {shape: float(scores[owners == index].max()) for index, shape in enumerate(SHAPES)}


def _normalized(outline: BoolArray) -> Float32Array:
    """The outline on a GRID x GRID grid, shifted to its centroid and scaled by its area."""
    rows, columns = np.nonzero(outline)
    unit = math.sqrt(len(rows))
    offsets = ((np.arange(GRID) + 0.5) / GRID * 2 - 1) * REACH * unit
    return _sample(outline.astype(np.float32), rows.mean() + offsets, columns.mean() + offsets)


def _sample(values: Float32Array, rows: Float64Array, columns: Float64Array) -> Float32Array:
    """Bilinear samples of `values` on the grid of `rows` x `columns`. Values outside of the array are 0."""
    across, down = _weights(columns, values.shape[1]), _weights(rows, values.shape[0])
    return (down @ np.pad(values, 1) @ across.T).astype(np.float32)


def _weights(positions: Float64Array, length: int) -> Float32Array:
    """Matrix of shape (positions, length + 2) that interpolates linearly in a row with one zero added at both ends."""
    clipped = np.clip(positions + 1, 0, length + 1)
    low = np.minimum(clipped.astype(np.intp), length)
    fraction = (clipped - low).astype(np.float32)
    weights = np.zeros((len(positions), length + 2), np.float32)
    rows = np.arange(len(positions))
    weights[rows, low] = 1 - fraction
    weights[rows, low + 1] += fraction
    return weights


@lru_cache(maxsize=1)
def _templates() -> tuple[Float32Array, NDArray[np.intp]]:
    """Every shape at every rotation and scale.

    Returns the templates, of shape (number, GRID * GRID), and the index in `SHAPES` of each template.
    """
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
    """The outline of a shape on the grid, rotated by `angle` in radians and closed like a recognized outline."""
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
