"""Interval and p-values of a mean of values of any kind. Knows only numbers.

The methods are explained in `fluxexp.compare.intervals`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True, slots=True)
class ContinuousMean:
    """A mean, or a mean difference, of values of any kind."""

    mean: float
    deviation: float
    skewness: float
    num_samples: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The wider ends of the t interval and of Hall's interval."""
        quantile = float(special.stdtrit(self.num_samples - 1, (1 + level) / 2)) / self.num_samples**0.5
        low = self.mean - self.deviation * max(quantile, self._untransform(quantile))
        high = self.mean - self.deviation * min(-quantile, self._untransform(-quantile))
        return low, high

    def p_above(self, limit: float) -> float:
        """The larger p-value of the t test and of Hall's test."""
        if not self.deviation:
            return 0.0 if self.mean > limit else 1.0
        distance = (self.mean - limit) / self.deviation
        return float(self._tail(min(distance, self._transform(distance))))

    def p_below(self, limit: float) -> float:
        """The larger p-value of the t test and of Hall's test."""
        return ContinuousMean(-self.mean, self.deviation, -self.skewness, self.num_samples).p_above(-limit)

    def _tail(self, distance: float) -> float:
        return float(special.stdtr(self.num_samples - 1, -distance * self.num_samples**0.5))

    def _transform(self, distance: float) -> float:
        """Hall's monotone cubic. `distance` is (mean - true mean) / standard deviation."""
        skew = self.skewness
        return distance + skew * distance**2 / 3 + skew**2 * distance**3 / 27 + skew / (6 * self.num_samples)

    def _untransform(self, distance: float) -> float:
        """The inverse of `_transform`."""
        skew, shifted = self.skewness, distance - self.skewness / (6 * self.num_samples)
        return shifted if abs(skew) < 1e-6 else float(3 / skew * (np.cbrt(1 + skew * shifted) - 1))
