"""Chooses the cheapest of the points that are shown to be good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fluxexp.compare.verdicts import Candidate, Verdict, direction
from fluxexp.metrics.catalog import MetricInfo


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer for some points of a sweep."""

    chosen: Candidate
    ties: Sequence[Candidate]
    """Other points that are good enough and cost as much, as far as costs are known."""
    cheaper: Sequence[Candidate]
    """Points that cost less, most expensive first. None of them is shown to be good enough."""
    is_decided: bool
    """Whether the chosen point is shown to be good enough, and every cheaper one to be not good enough."""


def choose(
    candidates: Sequence[Candidate], fallback: Candidate, verdicts: Mapping[int, Verdict], metric: MetricInfo
) -> Choice:
    """The cheapest point that is shown to be good enough. Of those that cost as much as it, the one with the best mean.

    Costs are equal if their intervals overlap. `fallback` is chosen if no point is good enough.
    """
    enough = [c for c in candidates if verdicts[c.number].verdict == "enough"] or [fallback]
    cheapest = min(enough, key=cost)
    tied = [c for c in enough if c is cheapest or _costs_as_much(c, cheapest)]
    chosen = max(tied, key=lambda c: (direction(metric) * c.quality.mean, -cost(c)))
    cheaper = [c for c in candidates if c not in tied and cost(c) < cost(chosen) and not _costs_as_much(c, chosen)]
    shown = verdicts[chosen.number].verdict == "enough"
    return Choice(
        chosen,
        [c for c in tied if c is not chosen],
        sorted(cheaper, key=cost, reverse=True),
        shown and all(verdicts[c.number].verdict == "not enough" for c in cheaper),
    )


def cost(candidate: Candidate) -> float:
    """The cost of a candidate that has one."""
    assert candidate.cost_s is not None
    return candidate.cost_s


def _costs_as_much(one: Candidate, other: Candidate) -> bool:
    """Whether two costs are equal, as far as they are known."""
    if one.cost_low_s is None or one.cost_high_s is None or other.cost_low_s is None or other.cost_high_s is None:
        return one.cost_s == other.cost_s
    return one.cost_low_s <= other.cost_high_s and other.cost_low_s <= one.cost_high_s
