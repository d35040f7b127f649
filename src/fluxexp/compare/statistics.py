"""Means and paired differences with 95 % confidence intervals (`fluxexp.compare.intervals`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fluxexp.compare.intervals import Evidence, evidence_of_difference, evidence_of_mean


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over images with its confidence interval. The interval needs `intervals.MIN_SAMPLES` samples."""

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
    """Fraction of the unequal pairs that are better. None if all pairs are equal, or if neither direction is better."""
    num_ties: int
    """Number of equal pairs."""
    num_pairs: int

    def to_json(self) -> dict[str, float | int | None]:
        """As `sweep.json` has it."""
        return _rounded(asdict(self))


def mean_of(values: Sequence[float], samples: Sequence[Hashable], is_flag: bool | None = None) -> Mean:
    """The mean of `values` (at least one). Values with equal `samples` belong to one sample.

    `is_flag`: see `evidence_of_mean`.
    """
    low, high = _interval(evidence_of_mean(values, samples, is_flag))
    return Mean(float(np.mean(values)), low, high, len(values))


def difference_of(
    values: Sequence[float],
    baseline: Sequence[float],
    samples: Sequence[Hashable],
    higher_is_better: bool | None,
    is_flag: bool | None = None,
) -> Difference:
    """`values` minus `baseline`, pair by pair. Needs at least one pair."""
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    low, high = _interval(evidence_of_difference(values, baseline, samples, is_flag))
    num_ties = int(np.sum(differences == 0))
    win_rate = None
    if higher_is_better is not None and num_ties < len(differences):
        num_wins = np.sum(differences > 0 if higher_is_better else differences < 0)
        win_rate = float(num_wins) / (len(differences) - num_ties)
    return Difference(float(differences.mean()), low, high, win_rate, num_ties, len(differences))


def _interval(evidence: Evidence | None) -> tuple[float, float] | tuple[None, None]:
    return (None, None) if evidence is None else evidence.interval()


def _rounded(values: dict[str, float | int | None]) -> dict[str, float | int | None]:
    """Values with six significant digits, which is enough for any score."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
