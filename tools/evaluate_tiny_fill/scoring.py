"""Scores pictures. Does not import torch, so that the scoring processes start quickly."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluxexp.data.shapes import COLORS, SHAPES
from fluxexp.metrics.shape_reading import read_object

_OBJECT = re.compile(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Score of one object in a picture. The requested color and shape come from the caption or from the truth."""

    color: bool
    """Whether the object has the requested color."""
    shape: bool
    """Whether the object has the requested shape."""
    overlap: float
    """Intersection over union of the painted outline and the requested shape."""
    psnr: float = float("nan")
    """PSNR of the masked region, in dB."""
    ssim: float = float("nan")
    """Mean of the SSIM map in the masked region."""


def score_fill(picture: Pixels, truth: Pixels, mask: Pixels, asked: tuple[str, str]) -> Score:
    """Score a filled masked region. `asked` is the requested (color, shape)."""
    reading = read_object(picture, mask)
    masked_region = mask > 0
    return Score(
        color=reading.color == asked[0],
        shape=reading.shape == asked[1],
        overlap=reading.overlaps.get(asked[1], 0.0),
        psnr=psnr(picture[masked_region], truth[masked_region]),
        ssim=float(_ssim_map(picture, truth)[masked_region].mean()),
    )


def score_objects(picture: Pixels, asked: list[tuple[str, str]]) -> list[Score]:
    """Score each requested object (color, shape) of a whole picture."""
    scores = []
    for color, shape in asked:
        reading = read_object(picture, color=color)
        found = reading.color is not None
        scores.append(Score(color=found, shape=reading.shape == shape, overlap=reading.overlaps.get(shape, 0.0)))
    return scores


def named_objects(caption: str) -> list[tuple[str, str]]:
    """The objects that a caption names, as (color, shape)."""
    return [(found[1], found[2]) for found in _OBJECT.finditer(caption)]


def psnr(picture: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio of 8-bit values, in dB; at most 78."""
    error = float(np.mean((picture.astype(np.float64) - truth) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def _ssim_map(picture: Pixels, truth: Pixels) -> NDArray[np.float64]:
    """SSIM (Wang et al. 2004) of the mean of the color channels in windows of 7 x 7 pixels: (height, width)."""
    a, b = (values.astype(np.float64).mean(axis=2) for values in (picture, truth))
    mean_a, mean_b = _box(a), _box(b)
    covariance = _box(a * b) - mean_a * mean_b
    spread = _box(a * a) - mean_a**2 + _box(b * b) - mean_b**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity: NDArray[np.float64] = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return similarity / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))


def _box(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over windows of 7 x 7 values. Values at the edge are repeated outwards."""
    for axis in (0, 1):
        # The difference of two cumulative sums is the sum over a window.
        widths = [(4, 3) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.cumsum(np.pad(values, widths, mode="edge"), axis=axis)
        length = values.shape[axis]
        values = (np.take(sums, range(7, 7 + length), axis) - np.take(sums, range(length), axis)) / 7
    return values
