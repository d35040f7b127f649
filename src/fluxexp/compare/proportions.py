"""Intervals and p-values of a proportion, and of a paired difference of two proportions. Knows only numbers.

The methods are explained in `fluxexp.compare.intervals`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Proportion:
    """A mean of values 0 and 1."""

    mean: float
    effective: float
    """Number of independent images that would be as informative: the number of images over the design effect."""
    freedom: int | None
    """Degrees of freedom of the design effect; None with one image per sample."""
    num_samples: int

    @property
    def deviation(self) -> float:
        """From one more success and one more failure (Agresti & Coull 1998), so that it is never 0."""
        share = (self.mean * self.effective + 1) / (self.effective + 2)
        return float(np.sqrt(share * (1 - share) * self.num_samples / self.effective))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Clopper-Pearson. With a design effect, z becomes t, as Korn & Graubard do."""
        number = self.effective
        if self.freedom is not None:
            number *= (special.ndtri((1 + level) / 2) / special.stdtrit(self.freedom, (1 + level) / 2)) ** 2
        successes, tail = self.mean * number, (1 - level) / 2
        low = special.betaincinv(successes, number - successes + 1, tail) if self.mean > 0 else 0.0
        high = special.betaincinv(successes + 1, number - successes, 1 - tail) if self.mean < 1 else 1.0
        return float(min(low, self.mean)), float(max(high, self.mean))

    def p_above(self, limit: float) -> float:
        """The probability of at least this many successes if the proportion is `limit`."""
        if self.mean <= 0 or limit >= 1:
            return 1.0
        successes = self.mean * self.effective
        return float(special.betainc(successes, self.effective - successes + 1, max(0.0, limit)))

    def p_below(self, limit: float) -> float:
        """The probability of at most this many successes if the proportion is `limit`."""
        return Proportion(1 - self.mean, self.effective, self.freedom, self.num_samples).p_above(1 - limit)


@dataclass(frozen=True, slots=True)
class PairedProportions:
    """A paired difference of values 0 and 1."""

    wins: float
    """Fraction of the pairs with the difference 1."""
    losses: float
    """Fraction of the pairs with the difference -1."""
    effective: float
    """Number of independent pairs that would be as informative: the number of pairs over the design effect."""
    freedom: int | None
    """Degrees of freedom of the design effect; None with one image per sample."""
    num_samples: int

    @property
    def mean(self) -> float:
        """The difference of the two proportions."""
        return self.wins - self.losses

    @property
    def deviation(self) -> float:
        """From half a win and half a loss more, so that it is never 0."""
        number = self.effective
        wins, losses = ((share * number + 0.5) / (number + 1) for share in (self.wins, self.losses))
        return float(np.sqrt((wins + losses - (wins - losses) ** 2) * self.num_samples / number))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """All differences that the score test does not reject."""
        tail = (1 - level) / 2
        quantile = -float(special.ndtri(tail) if self.freedom is None else special.stdtrit(self.freedom, tail))
        return self._end(quantile, -1.0), self._end(-quantile, 1.0)

    def p_above(self, limit: float) -> float:
        """From the score test."""
        return self._tail(-self._score(limit))

    def p_below(self, limit: float) -> float:
        """From the score test."""
        return self._tail(self._score(limit))

    def _tail(self, score: float) -> float:
        return float(special.ndtr(score) if self.freedom is None else special.stdtr(self.freedom, score))

    def _end(self, score: float, outer: float) -> float:
        """The difference with this score, between the observed one and `outer`. The score falls with the difference."""
        near, far = self.mean, outer
        for _ in range(_BISECTIONS):
            middle = (near + far) / 2
            if abs(self._score(middle)) <= abs(score):
                near = middle
            else:
                far = middle
        return far

    def _score(self, difference: float) -> float:
        """Tango's score of the hypothesis that the true difference is `difference`.

        The variance is that of the most likely probabilities of a win and of a loss with this difference. The
        probability of a loss is the positive root of a square equation (Tango 1998, equation 8).
        """
        number = self.effective
        numerator = number * (self.mean - difference)
        if abs(difference) >= 1:
            return float(np.copysign(np.inf, numerator)) if numerator else 0.0
        wins, losses = self.wins * number, self.losses * number
        b = (2 * number - wins + losses) * difference - wins - losses
        c = -losses * difference * (1 - difference)
        loss = (np.sqrt(max(0.0, b * b - 8 * number * c)) - b) / (4 * number)
        variance = number * (2 * loss + difference * (1 - difference))
        if variance <= 1e-12:
            return float(np.copysign(np.inf, numerator)) if abs(numerator) > 1e-12 else 0.0
        return float(numerator / np.sqrt(variance))
