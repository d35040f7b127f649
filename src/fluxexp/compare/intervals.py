"""How certain a mean or a paired difference is: confidence intervals and one-sided p-values. Knows only arrays.

Two images of one sample are not independent, so every method counts samples, not images. With fewer than `MIN_SAMPLES`
samples there is no evidence, because no method has its nominal coverage then. `benchmarks/interval_coverage.py`
measures the coverage of all methods.

The methods:

- A proportion, which is a mean of values 0 and 1: the exact interval of Clopper & Pearson (1934). With several images
  per sample the number of images is divided by the design effect (Korn & Graubard 1998).
- A paired difference of values 0 and 1: the score interval of Tango (1998), which inverts the score test of
  non-inferiority. With several images per sample the number of pairs is divided by the design effect, too.
- Other values: the t interval, and Hall's (1992) transformation of t, which removes the effect of skewness. Each end is
  the wider one of both. With several images per sample, the values are the linearized means of the samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fluxexp.arrays import Float64Array
from fluxexp.compare.continuous_mean import ContinuousMean
from fluxexp.compare.proportions import PairedProportions, Proportion

LEVEL = 0.95
MIN_SAMPLES = 8
"""Smallest number of samples for an interval."""


class Evidence(Protocol):
    """What the scores say about an unknown mean or mean difference."""

    @property
    def mean(self) -> float:
        """The observed mean (over images)."""

    @property
    def num_samples(self) -> int:
        """Number of samples, which are independent."""

    @property
    def deviation(self) -> float:
        """Standard deviation of a sample's value. Positive for values 0 and 1, even if all observed ones are equal."""

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The two-sided confidence interval. It always contains the mean."""

    def p_above(self, limit: float) -> float:
        """One-sided p-value against "the mean is at most `limit`": small if it is clearly above."""

    def p_below(self, limit: float) -> float:
        """One-sided p-value against "the mean is at least `limit`": small if it is clearly below."""


def evidence_of_mean(
    values: Sequence[float] | Float64Array, samples: Sequence[Hashable], is_flag: bool | None = None
) -> Evidence | None:
    """Evidence for the mean of `values`; values with equal `samples` belong to one sample. None for too few samples.

    `is_flag` says whether only the values 0 and 1 are possible; None: if all observed values are 0 or 1.
    """
    array = np.asarray(values, np.float64)
    groups = _Groups.of(samples)
    if groups.number < MIN_SAMPLES:
        return None
    if _are_flags(array) if is_flag is None else is_flag:
        return Proportion(float(array.mean()), *_effective(array, groups, lowest=0), groups.number)
    return _continuous(array, groups)


def evidence_of_difference(
    values: Sequence[float] | Float64Array,
    baseline: Sequence[float] | Float64Array,
    samples: Sequence[Hashable],
    is_flag: bool | None = None,
) -> Evidence | None:
    """Evidence for the mean of `values` minus `baseline`, pair by pair. None for too few samples.

    `is_flag` says whether only the values 0 and 1 are possible; None: if all observed values are 0 or 1.
    """
    ours, theirs = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    groups = _Groups.of(samples)
    if groups.number < MIN_SAMPLES:
        return None
    differences = ours - theirs
    if not (_are_flags(ours) and _are_flags(theirs) if is_flag is None else is_flag):
        return _continuous(differences, groups)
    wins, losses = float(np.mean(differences > 0)), float(np.mean(differences < 0))
    return PairedProportions(wins, losses, *_effective(differences, groups, lowest=-1), groups.number)


def one_sided_bounds(evidence: Evidence, level: float = LEVEL) -> tuple[float, float]:
    """Lower and upper bound, each of which alone holds with confidence `level` (above 0.5)."""
    return evidence.interval(2 * level - 1)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Which sample each image belongs to."""

    index: np.ndarray[tuple[int], np.dtype[np.intp]]
    counts: Float64Array

    @classmethod
    def of(cls, samples: Sequence[Hashable]) -> _Groups:
        places: Mapping[Hashable, int] = {sample: place for place, sample in enumerate(dict.fromkeys(samples))}
        index = np.fromiter((places[sample] for sample in samples), np.intp, len(samples))
        return cls(index, np.bincount(index, minlength=len(places)).astype(np.float64))

    @property
    def number(self) -> int:
        return len(self.counts)

    def linearized(self, values: Float64Array) -> Float64Array:
        """Deviation of each sample from the mean over images. Their mean is 0, and they are nearly independent.

        The mean over images is the ratio of two sums; this is its linearization (Cochran 1977, section 6). With one
        image per sample it is the value minus the mean.
        """
        sums = np.bincount(self.index, values, self.number)
        found: Float64Array = (sums - values.mean() * self.counts) / self.counts.mean()
        return found


def _are_flags(values: Float64Array) -> bool:
    return bool(np.all((values == 0) | (values == 1)))


def _continuous(values: Float64Array, groups: _Groups) -> ContinuousMean:
    number, deviations = groups.number, groups.linearized(values)
    variance = float(np.mean(deviations**2))
    mean = float(values.mean())
    if variance <= (1e-12 * max(1.0, abs(mean))) ** 2:  # equal values, up to rounding
        return ContinuousMean(mean, 0.0, 0.0, number)
    skewness = float(np.mean(deviations**3)) / variance**1.5 * (number * (number - 1)) ** 0.5 / (number - 2)
    return ContinuousMean(mean, (variance * number / (number - 1)) ** 0.5, skewness, number)


def _effective(values: Float64Array, groups: _Groups, lowest: float) -> tuple[float, int | None]:
    """Number of images over their design effect, and its degrees of freedom (None with one image per sample).

    The design effect is the variance of the mean over that of independent images, at least 1 (Korn & Graubard 1998).
    Few samples that differ from the others would make it uncertain and often too small. So half of a sample with all
    values `lowest`, and half of one with all values 1, are added to both variances. They draw the effect to its largest
    value, the number of images per sample. `benchmarks/interval_coverage.py` shows that this is enough.
    """
    images, number = len(values), groups.number
    if images == number:
        return float(images), None
    added = ((lowest - values.mean()) ** 2 + (1 - values.mean()) ** 2) / 2
    clustered = float(np.sum(groups.linearized(values) ** 2) + added) / (number * (number - 1))
    naive = float(np.sum((values - values.mean()) ** 2) + added * images / number) / images**2
    return images / max(1.0, clustered / naive), number - 1
