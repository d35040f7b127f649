"""Quality against cost: the Pareto front, and the cheapest point that is good enough, as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.compare.pairs import Values, paired
from fluxexp.compare.statistics import Mean
from fluxexp.metrics.catalog import MetricInfo, info


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point with a score."""

    number: int
    label: str
    quality: Mean
    cost_s: float | None
    """Device seconds per image."""
    values: Values


def pareto(candidates: Sequence[Candidate], metric: str | None) -> set[int]:
    """Numbers of the points on the Pareto front: no other point is as good and as cheap, and better in one of them."""
    if metric is None:
        return set()
    sign = _sign(info(metric))
    known = [(c.number, sign * c.quality.mean, c.cost_s) for c in candidates if c.cost_s is not None]
    return {
        number
        for number, quality, cost in known
        if not any(
            other_quality >= quality and other_cost <= cost and (other_quality, other_cost) != (quality, cost)
            for _, other_quality, other_cost in known
        )
    }


def decide(candidates: Sequence[Candidate], metric: MetricInfo, tolerance: float) -> dict[str, Any] | None:
    """The best point, the cheapest point whose mean is within `tolerance` of the best, and a sentence about both.

    None if fewer than two points have a known cost, or if the metric has no better direction.
    """
    known = [candidate for candidate in candidates if candidate.cost_s is not None]
    if len(known) < 2 or metric.higher_is_better is None:
        return None
    sign = _sign(metric)
    best = max(known, key=lambda c: (sign * c.quality.mean, -_cost(c)))
    enough = [c for c in known if sign * (c.quality.mean - best.quality.mean) >= -tolerance - 1e-12]
    cheapest = min(enough, key=_cost)
    return {
        "best": best.number,
        "cheapest": cheapest.number,
        "sentence": _sentence(best, cheapest, metric, tolerance),
    }


def _sentence(best: Candidate, cheapest: Candidate, metric: MetricInfo, tolerance: float) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    best_mean = f"{_number(best.quality.mean)}{unit}"
    cost = f"{_number(_cost(cheapest))} s per image"
    if cheapest is best:
        limit = f"{_number(tolerance)}{unit}"
        return (
            f"{best.label} is best in {metric.title} ({best_mean}) at {cost}. No cheaper point is within {limit} of it."
        )
    mean = f"{_number(cheapest.quality.mean)}{unit}"
    ratio = f"{_cost(best) / _cost(cheapest):.2g} times cheaper"
    quality = f"{metric.title} {mean} (best: {best_mean} with {best.label})"
    confidence = _confidence(best, cheapest, metric, tolerance)
    return f"{cheapest.label} is good enough: {quality} at {cost}, {ratio}. {confidence}"


def _confidence(best: Candidate, cheapest: Candidate, metric: MetricInfo, tolerance: float) -> str:
    """A sentence about the largest loss in the confidence interval of the paired difference."""
    difference = paired(cheapest.values, best.values, metric.name)
    worst = None if difference is None else (difference.low if metric.higher_is_better else difference.high)
    if difference is None or worst is None:
        return "There are too few samples for a confidence interval."
    loss = max(0.0, -_sign(metric) * worst)
    images = f"(on {difference.num_pairs} images)"
    if loss <= tolerance + 1e-12:
        return f"With 95 % confidence, the loss is at most {_number(tolerance)} {images}."
    return f"With 95 % confidence, the loss is at most {_number(loss)} {images}, which is above the tolerance."


def _cost(candidate: Candidate) -> float:
    assert candidate.cost_s is not None
    return candidate.cost_s


def _sign(metric: MetricInfo) -> int:
    return -1 if metric.higher_is_better is False else 1


def _number(value: float) -> str:
    return f"{value:.3g}"
