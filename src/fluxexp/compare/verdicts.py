"""A verdict for each point: whether it loses more than the tolerance against any other point (non-inferiority).

Two claims are possible about a point, and each is a test on paired differences with a one-sided p-value:

- "enough": the point loses less than the tolerance against every rival. Its p-value is the largest one of all rivals
  (an intersection-union test, Berger 1982), so it does not matter that the best rival is not known.
- "not enough": the point loses more than the tolerance against some rival. Its p-value is the smallest one, times the
  number of rivals (Bonferroni).

A point for which neither claim is proven is "undecided". For each of the two claims, Holm's (1979) procedure over all
points keeps the probability of at least one wrong claim in a sweep at or below `ALPHA`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from scipy import special

from fluxexp.compare.intervals import MIN_SAMPLES, Evidence, evidence_of_difference
from fluxexp.compare.pairs import Values
from fluxexp.compare.statistics import Mean
from fluxexp.metrics.catalog import MetricInfo

ALPHA = 0.05
MAX_RIVALS = 24
"""A point is compared with this number of rivals at most: those with the best means."""
_POWER = 0.8
MAX_SAMPLES = 1_000_000
"""A larger number of samples is not given."""


Decided = Literal["enough", "not enough"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point with a score."""

    number: int
    label: str
    quality: Mean
    cost_s: float | None
    """Device seconds per image."""
    values: Values
    cost_low_s: float | None = None
    """Lower end of the confidence interval of the cost; None if it is unknown."""
    cost_high_s: float | None = None
    """Upper end."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about the loss of a point."""

    point: int
    verdict: Decided | Literal["undecided"]
    rival: int | None
    """The point against which the largest loss is possible."""
    bound: float | None
    """The loss against `rival` is at most this, with the confidence of the verdict. None for too few samples."""
    num_samples: int
    """Number of samples that the point and its rival share."""
    num_samples_needed: int | None
    """How many samples would probably decide; None if the point is decided, or if no practical number would."""

    def to_json(self) -> dict[str, Any]:
        """As `sweep.json` has it."""
        values = asdict(self)
        return values | {"bound": None if self.bound is None else float(f"{self.bound:.6g}")}


@dataclass(frozen=True, slots=True)
class _Loss:
    """What the scores say about the loss of a point against a rival."""

    rival: int
    gain: Evidence | None
    """Of the paired differences, in the direction of better scores. None for too few samples."""
    num_samples: int

    def p_enough(self, tolerance: float) -> float:
        return 1.0 if self.gain is None else self.gain.p_above(-tolerance)

    def p_not_enough(self, tolerance: float) -> float:
        return 1.0 if self.gain is None else self.gain.p_below(-tolerance)

    def bound(self, alpha: float) -> float | None:
        return None if self.gain is None else max(0.0, -self.gain.interval(1 - 2 * alpha)[0])

    def num_samples_needed(self, tolerance: float, alpha: float) -> float:
        """See `num_samples_needed`; infinite if the mean loss is the tolerance."""
        if self.gain is None:
            return MIN_SAMPLES
        return max(self.num_samples + 1, num_samples_needed(self.gain.deviation, tolerance + self.gain.mean, alpha))


def judge(
    candidates: Sequence[Candidate], rivals: Mapping[int, Sequence[Candidate]], metric: MetricInfo, tolerance: float
) -> dict[int, Verdict]:
    """The verdict of each candidate, by its number.

    Args:
        candidates: the points.
        rivals: by the number of a candidate, the points that it must not lose against. May contain the candidate.
        metric: the quality metric, with a better direction.
        tolerance: the loss that does not matter.
    """
    losses = {c.number: [_loss(c, rival, metric) for rival in rivals[c.number] if rival is not c] for c in candidates}
    enough = {
        number: max((loss.p_enough(tolerance) for loss in found), default=0.0) for number, found in losses.items()
    }
    not_enough = {
        number: min((len(found) * loss.p_not_enough(tolerance) for loss in found), default=1.0)
        for number, found in losses.items()
    }
    alphas, proven = holm(enough)
    fail_alphas, refuted = holm(not_enough)
    verdicts = {}
    for number, found in losses.items():
        decided: Decided | None = "enough" if number in proven else "not enough" if number in refuted else None
        verdicts[number] = _verdict(number, found, tolerance, decided, (alphas[number], fail_alphas[number]))
    return verdicts


def best_rivals(candidates: Sequence[Candidate], metric: MetricInfo) -> list[Candidate]:
    """The candidates with the best means, at most `MAX_RIVALS`."""
    sign = direction(metric)
    return sorted(candidates, key=lambda c: -sign * c.quality.mean)[:MAX_RIVALS]


def holm(p_values: Mapping[int, float], alpha: float = ALPHA) -> tuple[dict[int, float], set[int]]:
    """Holm's procedure: the level at which each hypothesis is tested, and the hypotheses that are rejected.

    The smallest p-value is tested at `alpha` / m, the next one at `alpha` / (m - 1), and so on until one is not
    rejected. All later ones are tested at the level of that one.
    """
    levels: dict[int, float] = {}
    rejected: set[int] = set()
    for number in sorted(p_values, key=lambda number: p_values[number]):
        levels[number] = alpha / (len(p_values) - len(rejected))
        if p_values[number] > levels[number]:
            break
        rejected.add(number)
    last = alpha / max(1, len(p_values) - len(rejected))
    return {number: levels.get(number, last) for number in p_values}, rejected


def num_samples_needed(deviation: float, margin: float, alpha: float = ALPHA) -> float:
    """Number of samples that prove, with a probability of 80 %, that a mean is on this side of a limit.

    The formula is (z(1 - alpha) + z(power))^2 deviation^2 / margin^2, for the paired difference of a non-inferiority
    trial (Julious 2004, "Sample sizes for clinical trials with normal data", Statistics in Medicine 23).

    Args:
        deviation: standard deviation of a sample's difference.
        margin: how far the mean is from the limit. Infinity is returned for 0.
        alpha: one-sided level of the test.
    """
    if margin == 0:
        return float("inf")
    return float((special.ndtri(1 - alpha) + special.ndtri(_POWER)) ** 2 * (deviation / margin) ** 2)


def round_up(number: int) -> int:
    """`number` to two significant digits, because an estimate of a number of samples is not more accurate."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def direction(metric: MetricInfo) -> int:
    """1 if higher values are better, -1 if lower values are."""
    return -1 if metric.higher_is_better is False else 1


def _loss(candidate: Candidate, rival: Candidate, metric: MetricInfo) -> _Loss:
    pairs = [pair for pair in candidate.values if pair in rival.values]
    samples = [sample for sample, _, _ in pairs]
    sides = [candidate.values, rival.values][:: direction(metric)]
    ours, theirs = ([side[pair] for pair in pairs] for side in sides)
    return _Loss(rival.number, evidence_of_difference(ours, theirs, samples, metric.is_flag), len(set(samples)))


def _verdict(
    number: int, losses: Sequence[_Loss], tolerance: float, decided: Decided | None, alphas: tuple[float, float]
) -> Verdict:
    """`alphas`: the levels at which Holm's procedure tests "enough" and "not enough"."""
    if not losses:
        return Verdict(number, "enough", None, 0.0, 0, None)
    worst = max(losses, key=lambda loss: (loss.p_enough(tolerance), loss.bound(alphas[0]) or 0.0))
    return Verdict(
        point=number,
        verdict=decided or "undecided",
        rival=worst.rival,
        bound=worst.bound(alphas[0]),
        num_samples=worst.num_samples,
        num_samples_needed=None if decided else _needed(losses, tolerance, *alphas),
    )


def _needed(losses: Sequence[_Loss], tolerance: float, alpha: float, fail_alpha: float) -> int | None:
    """For a point whose mean loses too much against a rival, the fewest that prove it; else those for all rivals."""
    lost = [loss for loss in losses if loss.gain is not None and loss.gain.mean < -tolerance]
    if lost:
        found = _finite(loss.num_samples_needed(tolerance, fail_alpha / len(losses)) for loss in lost)
        return min(found, default=None)
    open_losses = [loss for loss in losses if loss.p_enough(tolerance) > alpha]
    found = _finite(loss.num_samples_needed(tolerance, alpha) for loss in open_losses)
    return max(found) if found and len(found) == len(open_losses) else None


def _finite(numbers: Iterable[float]) -> list[int]:
    return [ceil(number) for number in numbers if number <= MAX_SAMPLES]
