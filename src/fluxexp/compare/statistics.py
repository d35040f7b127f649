"""Means and paired differences with confidence intervals. This module knows only arrays.

Intervals are 95 % percentile bootstrap intervals of a mean (Efron & Tibshirani 1993, ch. 13). They resample samples,
not images, because several images of one sample are not independent. The random seed is fixed, so that equal scores
always have equal intervals.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fluxexp.arrays import Float64Array

RESAMPLES = 2000
LEVEL = 0.95
_NORMAL_FROM = 5_000
"""From this number of samples on, the normal distribution is used: the mean plus and minus 1.96 standard errors."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over images with its confidence interval. The interval needs at least two samples."""

    mean: float
    low: float | None
    high: float | None
    num: int
    """Number of images."""

    def to_json(self) -> dict[str, float | int | None]:
        """As `summary.json` has it."""
        return _rounded(asdict(self))


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired difference of one point's scores from another's, over images of the same sample and noise."""

    difference: float
    low: float | None
    high: float | None
    win_rate: float | None
    """Fraction of pairs that are better; equal pairs count half. None if the metric has no better direction."""
    num_pairs: int

    def to_json(self) -> dict[str, float | int | None]:
        """As `sweep.json` has it."""
        return _rounded(asdict(self))


def mean_of(values: Sequence[float], samples: Sequence[Hashable]) -> Mean:
    """The mean of `values` (at least one). Values with equal `samples` belong to one sample."""
    array = np.asarray(values, np.float64)
    low, high = interval(array, samples)
    return Mean(float(array.mean()), low, high, len(array))


def difference_of(
    values: Sequence[float], baseline: Sequence[float], samples: Sequence[Hashable], higher_is_better: bool | None
) -> Difference:
    """`values` minus `baseline`, pair by pair. Needs at least one pair."""
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    low, high = interval(differences, samples)
    win_rate = None
    if higher_is_better is not None:
        gains = differences if higher_is_better else -differences
        win_rate = float(np.mean((gains > 0) + 0.5 * (gains == 0)))
    return Difference(float(differences.mean()), low, high, win_rate, len(differences))


def interval(values: Float64Array, samples: Sequence[Hashable]) -> tuple[float, float] | tuple[None, None]:
    """Confidence interval of the mean of `values`, by sample; (None, None) for fewer than two samples."""
    sums, counts = _by_sample(values, samples)
    number = len(sums)
    if number < 2:
        return None, None
    if number >= _NORMAL_FROM:
        # Standard error of a ratio of means, linearized. Exact for one image per sample.
        spread = (sums - values.mean() * counts).std(ddof=1) / (counts.mean() * np.sqrt(number))
        return float(values.mean() - 1.96 * spread), float(values.mean() + 1.96 * spread)
    resampled = np.random.default_rng(0).integers(number, size=(RESAMPLES, number))
    means = sums[resampled].sum(axis=1) / counts[resampled].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _by_sample(values: Float64Array, samples: Sequence[Hashable]) -> tuple[Float64Array, Float64Array]:
    """Sum and number of the values of each sample."""
    places: Mapping[Hashable, int] = {sample: place for place, sample in enumerate(dict.fromkeys(samples))}
    index = np.fromiter((places[sample] for sample in samples), np.intp, len(samples))
    sums: Float64Array = np.bincount(index, values, len(places)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(places)).astype(np.float64)


def _rounded(values: dict[str, float | int | None]) -> dict[str, float | int | None]:
    """Values with six significant digits, which is enough for any score."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
