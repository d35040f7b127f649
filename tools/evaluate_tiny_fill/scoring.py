"""Scores of pictures. Imports no torch: the processes that score start at once."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fluxexp.data.shapes import COLORS, SHAPES
from fluxexp.metrics.shape_reading import read_object

_THING = re.compile(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One picture. What is asked for is what the caption says; without a caption, what the truth has."""

    color: bool
    shape: bool
    overlap: float
    """Intersection over union of the painted outline with the shape asked for."""
    psnr: float = float("nan")
    ssim: float = float("nan")


def score_hole(picture: Pixels, truth: Pixels, mask: Pixels, asked: tuple[str, str]) -> Score:
    """One filled hole."""
    reading = read_object(picture, mask)
    masked_region = mask > 0
    return Score(
        color=reading.color == asked[0],
        shape=reading.shape == asked[1],
        overlap=reading.overlaps.get(asked[1], 0.0),
        psnr=psnr(picture[masked_region], truth[masked_region]),
        ssim=float(_ssim_map(picture, truth)[masked_region].mean()),
    )


def score_things(picture: Pixels, asked: list[tuple[str, str]]) -> list[Score]:
    """Each object (colour, shape) that should be in a whole picture."""
    scores = []
    for color, shape in asked:
        reading = read_object(picture, color=color)
        found = reading.color is not None
        scores.append(Score(color=found, shape=reading.shape == shape, overlap=reading.overlaps.get(shape, 0.0)))
    return scores


def things(caption: str) -> list[tuple[str, str]]:
    """The objects that a caption names, as (colour, shape)."""
    return [(found[1], found[2]) for found in _THING.finditer(caption)]


def psnr(picture: Pixels, truth: Pixels) -> float:
    """In dB, of 8 bits; at most 78."""
    error = float(np.mean((picture.astype(np.float64) - truth) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def _ssim_map(picture: Pixels, truth: Pixels) -> NDArray[np.float64]:
    """Structural similarity of the lightness (Wang et al. 2004) in windows of 7 x 7, (height, width)."""
    a, b = (values.astype(np.float64).mean(axis=2) for values in (picture, truth))
    mean_a, mean_b = _box(a), _box(b)
    covariance = _box(a * b) - mean_a * mean_b
    spread = _box(a * a) - mean_a**2 + _box(b * b) - mean_b**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity: NDArray[np.float64] = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return similarity / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))


def _box(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of 7 x 7 neighbourhoods, the edge repeated."""
    for axis in (0, 1):
        widths = [(4, 3) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.cumsum(np.pad(values, widths, mode="edge"), axis=axis)
        length = values.shape[axis]
        values = (np.take(sums, range(7, 7 + length), axis) - np.take(sums, range(length), axis)) / 7
    return values
