"""Quality against cost: the Pareto front, and the cheapest point that is shown to be good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.compare import answer_text as text
from fluxexp.compare.choice import choose, cost
from fluxexp.compare.verdicts import Candidate, Verdict, best_rivals, direction, judge
from fluxexp.metrics.catalog import MetricInfo, info


def pareto(candidates: Sequence[Candidate], metric: str | None) -> set[int]:
    """Numbers of the points on the Pareto front: no other point is as good and as cheap, and better in one of them.

    Empty for a metric without a better direction.
    """
    if metric is None or info(metric).higher_is_better is None:
        return set()
    sign = direction(info(metric))
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
    """The answer of a sweep whose scores compare with ground truths or prompts (docs/run-directory.md, `answer`).

    If no point is shown to be good enough, the answer is the point with the best mean, which is not decided.

    Returns:
        None if fewer than two points have a known cost, or if the metric has no better direction.
    """
    known = [candidate for candidate in candidates if candidate.cost_s is not None]
    if len(known) < 2 or metric.higher_is_better is None:
        return None
    sign = direction(metric)
    best = max(known, key=lambda c: (sign * c.quality.mean, -cost(c)))
    rivals = best_rivals(known, metric)
    verdicts = judge(known, dict.fromkeys((c.number for c in known), rivals), metric, tolerance)
    choice = choose(known, best, verdicts, metric)
    return {
        "best": best.number,
        "cheapest": choice.chosen.number,
        "decided": choice.is_decided,
        "ties": [candidate.number for candidate in choice.ties],
        "verdicts": [verdict.to_json() for verdict in verdicts.values()],
        "groups": [],
        "sentence": text.of_best(known, best, choice, verdicts, metric, tolerance),
    }


def decide_without_truths(
    groups: Mapping[int, Sequence[Candidate]], metric: MetricInfo, tolerance: float
) -> dict[str, Any] | None:
    """The answer of a sweep whose scores are distances from reference points.

    Args:
        groups: by the number of each reference, the points that have it, and the reference itself with the scores of
            identical images.
        metric: the distance.
        tolerance: the distance from identical images that does not matter.

    Returns:
        None if no group has two points with a known cost.
    """
    known = {
        number: [candidate for candidate in group if candidate.cost_s is not None] for number, group in groups.items()
    }
    known = {
        number: group
        for number, group in known.items()
        if len(group) > 1 and any(candidate.number == number for candidate in group)
    }
    if not known or metric.higher_is_better is None:
        return None
    references = {number: next(c for c in group if c.number == number) for number, group in known.items()}
    rivals = {c.number: [references[number]] for number, group in known.items() for c in group}
    verdicts = judge([c for group in known.values() for c in group], rivals, metric, tolerance)
    parts = [
        _closest(references[number], group, verdicts, metric, tolerance) for number, group in sorted(known.items())
    ]
    return {
        "best": None,
        "cheapest": parts[0]["cheapest"] if len(parts) == 1 else None,
        "decided": all(part["decided"] for part in parts),
        "ties": parts[0]["ties"] if len(parts) == 1 else [],
        "verdicts": [verdict.to_json() for verdict in verdicts.values()],
        "groups": parts,
        "sentence": " ".join(part["sentence"] for part in parts),
    }


def _closest(
    reference: Candidate,
    group: Sequence[Candidate],
    verdicts: Mapping[int, Verdict],
    metric: MetricInfo,
    tolerance: float,
) -> dict[str, Any]:
    """The answer for the points of one reference."""
    sign = direction(metric)
    others = [candidate for candidate in group if candidate is not reference]
    closest = max(others, key=lambda c: (sign * c.quality.mean, -cost(c)))
    choice = choose(group, reference, verdicts, metric)
    return {
        "reference": reference.number,
        "closest": closest.number,
        "cheapest": choice.chosen.number,
        "decided": choice.is_decided,
        "ties": [candidate.number for candidate in choice.ties],
        "sentence": text.of_closest(reference, closest, choice, verdicts, metric, tolerance),
    }
