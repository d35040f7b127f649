"""Means and paired differences with intervals. Knows arrays alone.

Intervals are 95 % percentile bootstrap intervals of a mean (Efron & Tibshirani 1993, ch. 13) over samples, not images:
several images of one sample are no independent observations. Numbers are drawn from a fixed seed, so that the same
scores always give the same interval.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_NORMAL_FROM = 5_000
"""Samples from which the mean is as good as normally distributed: its interval is then 1.96 standard errors wide."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over images, with the interval it lies in. Without two samples there is no interval."""

    mean: float
    low: float | None
    high: float | None
    num: int
    """Images."""

    def to_json(self) -> dict[str, float | int | None]:
        """As `summary.json` has it."""
        return _rounded(asdict(self))


@dataclass(frozen=True, slots=True)
class Difference:
    """What one point's scores are above another's, image by image on the same sample and noise."""

    difference: float
    low: float | None
    high: float | None
    win_rate: float | None
    """Share of pairs that are better, half of the equal ones among them; None where neither way is better."""
    num_pairs: int

    def to_json(self) -> dict[str, float | int | None]:
        """As `sweep.json` has it."""
        return _rounded(asdict(self))


def mean_of(values: Sequence[float], samples: Sequence[Hashable]) -> Mean:
    """The mean of `values` (at least one), of which those of equal `samples` belong together."""
    array = np.asarray(values, np.float64)
    low, high = interval(array, samples)
    return Mean(float(array.mean()), low, high, len(array))


def difference_of(
    values: Sequence[float], baseline: Sequence[float], samples: Sequence[Hashable], higher_is_better: bool | None
) -> Difference:
    """`values` less `baseline`, pair by pair (at least one)."""
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    low, high = interval(differences, samples)
    win_rate = None
    if higher_is_better is not None:
        gains = differences if higher_is_better else -differences
        win_rate = float(np.mean((gains > 0) + 0.5 * (gains == 0)))
    return Difference(float(differences.mean()), low, high, win_rate, len(differences))


def interval(values: FloatArray, samples: Sequence[Hashable]) -> tuple[float, float] | tuple[None, None]:
    """Interval of the mean of `values`, resampled by sample; (None, None) below two samples."""
    sums, counts = _by_sample(values, samples)
    number = len(sums)
    if number < 2:
        return None, None
    if number >= _NORMAL_FROM:
        # Of a ratio of means, linearised: exact for one image a sample.
        spread = (sums - values.mean() * counts).std(ddof=1) / (counts.mean() * np.sqrt(number))
        return float(values.mean() - 1.96 * spread), float(values.mean() + 1.96 * spread)
    drawn = np.random.default_rng(0).integers(number, size=(RESAMPLES, number))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _by_sample(values: FloatArray, samples: Sequence[Hashable]) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the values of each sample."""
    places: Mapping[Hashable, int] = {sample: place for place, sample in enumerate(dict.fromkeys(samples))}
    index = np.fromiter((places[sample] for sample in samples), np.intp, len(samples))
    sums: FloatArray = np.bincount(index, values, len(places)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(places)).astype(np.float64)


def _rounded(values: dict[str, float | int | None]) -> dict[str, float | int | None]:
    """Six digits: more than any score is worth."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
