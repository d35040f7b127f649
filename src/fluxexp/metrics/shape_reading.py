"""Recognizes the color and shape of a painted object from its pixels, for `dataset=shapes`. Needs no network.

The color is the palette color that is nearest to most object pixels. The shape is the one whose outline has the largest
overlap with the outline of the object, over all rotations that the dataset uses and several scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fluxexp.arrays import BoolArray, Float32Array, ImageArray
from fluxexp.data.shapes.palette import COLORS, INKS, SHAPES, TONE_STEP, TONES
from fluxexp.metrics.outlines import close, normalized, templates
from fluxexp.metrics.regions import bounding_box

Tone = Sequence[float]
"""RGB values from 0 to 255."""

NEAR = 46.0
"""RGB distance up to which a pixel matches a color. Backgrounds use half of it."""
MIN_AREA = 0.006
"""Smallest area of an object, as a fraction of the squared short side. The dataset's smallest object has 0.017."""


@dataclass(frozen=True, slots=True)
class ShapeReading:
    """The recognized object. `color` and `shape` are None if there is no object."""

    color: str | None
    shape: str | None
    overlaps: dict[str, float]
    """Largest intersection over union of the outline with the templates of each shape; empty without an object."""


def read_object(
    image: ImageArray, mask: ImageArray | None = None, color: str | None = None, tone: Tone | None = None
) -> ShapeReading:
    """Recognize the object in the masked region.

    Args:
        image: RGB of shape (height, width, 3).
        mask: of shape (height, width), above 127 in the masked region; None searches the whole image.
        color: search an object of this color; None searches the most frequent color.
        tone: `background_tone` of the image and the mask, if it is known.
    """
    masked_region = np.ones(image.shape[:2], bool) if mask is None else mask > 127
    if not masked_region.any():
        return ShapeReading(None, None, {})
    if tone is None:
        tone = background_tone(image, masked_region)
    short_side = min(masked_region.shape)
    box = bounding_box(masked_region, 0)
    masked_region, planes = masked_region[box], _planes(image[box])
    off_tone = _distance_to_tone(planes, tone)
    min_area = MIN_AREA * short_side**2
    if color is None:
        object_pixels = masked_region & (off_tone > NEAR / 2)
        color = _prevailing_color(planes[:, object_pixels], min_area)
        if color is None:
            return ShapeReading(None, None, {})
    outline = _outline(planes, color, tone, off_tone) & masked_region
    outline = close(outline, max(1, round(short_side / 64)))
    if np.count_nonzero(outline) < min_area:
        return ShapeReading(None, None, {})
    overlaps = _overlaps(outline)
    return ShapeReading(color, max(overlaps, key=lambda shape: overlaps[shape]), overlaps)


def background_tone(image: ImageArray, masked_region: BoolArray) -> Tone:
    """The most frequent background tone (RGB) in the unmasked region or, if that is small, in the whole image."""
    around = image[~masked_region] if has_background(masked_region) else image.reshape(-1, 3)
    planes = around[::3].T.astype(np.float32)
    distances = np.stack([_distance_to_tone(planes, tone) for tone in TONES.values()])
    near = distances.argmin(axis=0)[distances.min(axis=0) < NEAR / 2]
    return list(TONES.values())[np.bincount(near, minlength=len(TONES)).argmax()]


def has_background(masked_region: BoolArray) -> bool:
    """Whether the unmasked region is large enough to show the background."""
    return int(np.count_nonzero(~masked_region)) > masked_region.size // 8


def _planes(pixels: ImageArray) -> Float32Array:
    """float32 of shape (3, height, width): arithmetic on whole planes is several times faster than on pixels."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)


def _distance_to_tone(planes: Float32Array, tone: Tone) -> Float32Array:
    """RGB distance to the nearest color of a background, which is its tone plus or minus up to TONE_STEP."""
    start, end = (tuple(value + step for value in tone) for step in (-TONE_STEP, TONE_STEP))
    return _distance_to_line(planes, start, end)


def _distance_to_line(planes: Float32Array, start: Sequence[float], end: Sequence[float]) -> Float32Array:
    """Distance to the line segment from `start` to `end` in RGB space. `planes` has shape (3, ...)."""
    along, _ = _along(planes, start, end)
    return _distance_to_points(planes, start, end, np.clip(along, 0, 1))


def _along(planes: Float32Array, start: Sequence[float], end: Sequence[float]) -> tuple[Float32Array, float]:
    """Where along the line the nearest point is: 0 at `start`, 1 at `end`. Also the squared length of the line."""
    run = [np.float32(b) - np.float32(a) for a, b in zip(start, end, strict=True)]
    squared = max(float(sum(step * step for step in run)), 1.0)
    along: Float32Array = np.zeros(planes.shape[1:], np.float32)
    for plane, first, step in zip(planes, start, run, strict=True):
        along += (plane - np.float32(first)) * step
    along /= np.float32(squared)
    return along, squared


def _distance_to_points(
    planes: Float32Array, start: Sequence[float], end: Sequence[float], along: Float32Array
) -> Float32Array:
    """Distance of each pixel to its own point of the line through `start` and `end`."""
    squared: Float32Array = np.zeros(planes.shape[1:], np.float32)
    for plane, first, last in zip(planes, start, end, strict=True):
        off = plane - np.float32(first)
        off -= along * (np.float32(last) - np.float32(first))
        off *= off
        squared += off
    return np.sqrt(squared, out=squared)


def _prevailing_color(pixels: Float32Array, min_area: float) -> str | None:
    """The color nearest to most of `pixels`, of shape (3, number). None if it has fewer than `min_area` pixels."""
    if pixels.shape[1] < min_area:
        return None
    names = list(COLORS)
    colors = np.array([*COLORS.values(), *(INKS[name] for name in names)], np.float32)
    squares = np.zeros((len(colors), pixels.shape[1]), np.float32)
    for plane, values in zip(pixels, colors.T, strict=True):
        squares += (plane - values[:, None]) ** 2
    nearest = squares.argmin(axis=0)
    votes = np.bincount(nearest % len(names), minlength=len(names))
    # Edge pixels of one color can look like the ink of another color. So pixels of the color itself have more weight.
    is_near = squares.min(axis=0) < NEAR**2
    own = np.bincount(squares[: len(names), is_near].argmin(axis=0), minlength=len(names))
    best = int((votes + 0.5 * own).argmax())
    return names[best] if votes[best] >= min_area else None


def _outline(planes: Float32Array, color: str, tone: Tone, off_tone: Float32Array) -> BoolArray:
    """Pixels of the object's color or its ink, and edge pixels that are at least half object.

    `off_tone` is the distance of each pixel to the background.
    """
    paint, ink = COLORS[color], INKS[color]
    off_color = _distance_to_line(planes, paint, ink)
    outline = (off_color < NEAR) & (off_color < off_tone)
    for end in (paint, ink):
        # An edge pixel is a mix of the background and the object: it lies near the line between the two colors.
        fraction, squared = _along(planes, tone, end)
        if squared > (2 * NEAR) ** 2:
            outline |= (fraction > 0.5) & (_distance_to_points(planes, tone, end, fraction) < NEAR)
    return outline


def _overlaps(outline: BoolArray) -> dict[str, float]:
    """Largest intersection over union with the templates of each shape."""
    shapes, areas, owners = templates()
    found = normalized(outline).ravel()
    shared = np.einsum("nk,k->n", shapes, found)  # no matrix product: see `outlines.py`
    scores = shared / (areas + found.sum() - shared)
    return {shape: float(scores[owners == index].max()) for index, shape in enumerate(SHAPES)}
