"""Robust means of the seconds of batches. This module knows only arrays.

The unit of observation is the batch: its images share its seconds. A mean is trimmed: the fastest and the slowest
fifth of the batches do not count, so that a pause of the machine changes nothing, while a device that works at two
speeds still has a mean between them (a median would jump from one to the other). The standard error of a trimmed mean
uses the winsorized variance (Tukey & McLaughlin 1963; Wilcox, Introduction to Robust Estimation, section 3.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from fluxexp.arrays import Float64Array

TRIMMED = 0.2
"""Fraction of the batches that is left out at each end."""
LEVEL = 0.95

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2 ** 64 divided by the golden ratio: spreads bits (Knuth, The Art of Computer Programming, section 6.4)."""

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ImageTimes:
    """What the records of images say of their times, one entry for each image."""

    seconds: Mapping[str, Float64Array]
    """By stage: seconds of the batch, divided by its number of images."""
    sizes: Sizes
    """Equal numbers stand for equal sizes of images."""
    batch_sizes: npt.NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The images of all `parts`, which have the same stages."""
        return cls(
            {stage: np.concatenate([part.seconds[stage] for part in parts]) for stage in parts[0].seconds},
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.batch_sizes for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of seconds per image, with its interval. The interval needs three batches."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds per image of one stage, for each size of images."""

    means: Mapping[int, float]
    num_batches: Mapping[int, int]
    variance: float
    """Winsorized variance of the seconds of a batch, relative to the squared mean of its size."""
    freedom: int
    """Degrees of freedom of an interval."""

    @classmethod
    def of(cls, images: ImageTimes, stage: str) -> Self:
        """The times of `stage`.

        Batches of another size than usual do not count, if their images are of the same size: the last batches of a
        rank can be smaller, and take longer per image.
        """
        first, counts = _batches(images)
        first, counts = first[order := np.argsort(images.sizes[first], kind="stable")], counts[order]
        sizes, starts = np.unique(images.sizes[first], return_index=True)
        by_size = {
            size: images.seconds[stage][own[_are_usual(images.batch_sizes[own], num)]]
            for size, own, num in zip(
                sizes.tolist(), np.split(first, starts[1:]), np.split(counts, starts[1:]), strict=True
            )
        }
        trims = {size: int(TRIMMED * len(own)) for size, own in by_size.items()}
        spread = sum(_relative_squares(own, trims[size]) for size, own in by_size.items())
        return cls(
            means={size: _trimmed_mean(own, trims[size]) for size, own in by_size.items()},
            num_batches={size: len(own) for size, own in by_size.items()},
            variance=spread / max(1, sum(len(own) - 1 for own in by_size.values())),
            freedom=sum(len(own) - 2 * trims[size] - 1 for size, own in by_size.items()),
        )

    def of_images(self, sizes: Sizes) -> Estimate:
        """Mean seconds of images with these `sizes`. At least one image; all sizes are known."""
        found, counts = np.unique(sizes, return_counts=True)
        parts = np.array([self.means[size] for size in found.tolist()]) * counts / len(sizes)
        mean = float(parts.sum())
        if self.freedom < 2:
            return Estimate(mean, None, None)
        num_batches = np.array([self.num_batches[size] for size in found.tolist()])
        error = float(np.sqrt((parts**2 * self.variance / num_batches).sum())) / (1 - 2 * TRIMMED)
        margin = float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * error
        return Estimate(mean, max(0.0, mean - margin), mean + margin)


def _batches(images: ImageTimes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For each batch, the place of one of its images, and the number of its images.

    A manifest does not number batches. The images of a batch have exactly the same seconds, and no two batches have. So
    the bits of all seconds are a batch's name. They are hashed, because sorting rows would be several times slower.
    """
    names = np.zeros(len(images.sizes), np.uint64)
    for values in (*images.seconds.values(), images.sizes, images.batch_sizes):
        names = names * _MULTIPLIER + np.ascontiguousarray(values).view(np.uint64)
    _, first, counts = np.unique(names, return_index=True, return_counts=True)
    return first, counts


def _are_usual(batch_sizes: Sizes, num_images: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Which batches have the size of which most images are; of several such sizes, the largest."""
    found, places = np.unique(batch_sizes, return_inverse=True)
    totals = np.bincount(places, num_images)
    return np.asarray(batch_sizes == found[totals == totals.max()].max())


def _trimmed_mean(values: Float64Array, trimmed: int) -> float:
    return float(np.sort(values)[trimmed : len(values) - trimmed].mean())


def _relative_squares(values: Float64Array, trimmed: int) -> float:
    """Sum of squared deviations of the winsorized values, divided by the squared trimmed mean."""
    ordered = np.sort(values)
    winsorized = np.clip(values, ordered[trimmed], ordered[len(ordered) - 1 - trimmed])
    mean = _trimmed_mean(values, trimmed)
    return float(((winsorized - winsorized.mean()) ** 2).sum() / mean**2) if mean else 0.0
