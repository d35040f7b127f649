"""The answer of a sweep in words. Short sentences: what is chosen, how sure that is, and what would decide the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxexp.compare.choice import Choice
from fluxexp.compare.intervals import MIN_SAMPLES
from fluxexp.compare.verdicts import ALPHA, Candidate, Verdict, round_up
from fluxexp.metrics.catalog import MetricInfo

_MAX_NAMES = 3
"""Maximum number of points that a sentence names."""
_CONFIDENCE = f"With {1 - ALPHA:.0%} confidence".replace("%", " %")


def of_best(
    candidates: Sequence[Candidate],
    best: Candidate,
    choice: Choice,
    verdicts: Mapping[int, Verdict],
    metric: MetricInfo,
    tolerance: float,
) -> str:
    """The answer if scores have a best value: the best point, and the cheapest one that is good enough."""
    chosen, limit = choice.chosen, _with_unit(tolerance, metric)
    mean = f"{metric.title} {_with_unit(chosen.quality.mean, metric)}"
    at_cost = f"at {_number(chosen.cost_s)} s per image"
    verdict = verdicts[chosen.number]
    if verdict.verdict == "enough":
        compared = "" if chosen is best else f" (best: {_with_unit(best.quality.mean, metric)} with {best.label})"
        lead = f"{chosen.label} is good enough: {mean}{compared} {at_cost}{_ratio(best, chosen)}."
        sure = f"{_CONFIDENCE}, no other point is better by more than {limit} ({verdict.num_samples} samples)."
    else:
        lead = f"{chosen.label} has the best mean: {mean} {at_cost}."
        rival = next((c.label for c in candidates if c.number == verdict.rival), "another point")
        sure = _doubt_of_best(verdict, rival, limit)
    return " ".join([lead, sure, *_of_cheaper(choice, verdicts, limit, "worse than another point by more than")])


def of_closest(
    reference: Candidate,
    closest: Candidate,
    choice: Choice,
    verdicts: Mapping[int, Verdict],
    metric: MetricInfo,
    tolerance: float,
) -> str:
    """The answer if scores are distances from a reference: the closest point, and the cheapest one that is close."""
    chosen, limit = choice.chosen, _with_unit(tolerance, metric)
    lead = f"Closest to {reference.label}: {closest.label}, {_result(closest, metric)}{_ratio(reference, closest)}."
    if chosen is reference and choice.is_decided and choice.cheaper and not choice.ties:
        return f"{lead} Every cheaper point is further than {limit} from identical images."
    if chosen is reference:
        parts = [f"No cheaper point is shown to be close enough (within {limit} of identical images)."]
    else:
        is_other = chosen is not closest
        what = f", {_result(chosen, metric)}{_ratio(reference, chosen)}" if is_other else ""
        verdict = verdicts[chosen.number]
        parts = [
            f"{chosen.label} is close enough{what}.",
            f"{_CONFIDENCE}, its mean is within {limit} of identical images ({verdict.num_samples} samples).",
        ]
    return " ".join([lead, *parts, *_of_cheaper(choice, verdicts, limit, "further away than")])


def _doubt_of_best(verdict: Verdict, rival: str, limit: str) -> str:
    if not verdict.num_samples:
        return "The points have no scores of the same samples, so there is no verdict."
    if verdict.bound is None:
        return f"There are too few samples for a verdict: at least {MIN_SAMPLES} are needed."
    return f"Undecided: {rival} may be better by more than {limit} ({verdict.num_samples} samples{_needed([verdict])})."


def _of_cheaper(choice: Choice, verdicts: Mapping[int, Verdict], limit: str, worse: str) -> list[str]:
    """Sentences about points that are cheaper than the answer, and about points that cost as much."""
    parts = []
    if choice.ties:
        are = "costs" if len(choice.ties) == 1 else "cost"
        parts.append(f"{_names(choice.ties)} {are} as much, within the accuracy of the costs.")
    open_points = [c for c in choice.cheaper if verdicts[c.number].verdict == "undecided"]
    few = any(verdicts[c.number].bound is None for c in open_points)
    if open_points and not (few and verdicts[choice.chosen.number].bound is None):
        are, cheaper = ("is", "which is cheaper") if len(open_points) == 1 else ("are", "which are cheaper")
        needed = _needed([verdicts[c.number] for c in open_points])
        parts.append(f"{_names(open_points)}, {cheaper}, {are} undecided{needed}.")
    num_worse = len(choice.cheaper) - len(open_points)
    if num_worse and not open_points:
        parts.append(f"Every cheaper point is {worse} {limit}.")
    return parts


def _needed(verdicts: Sequence[Verdict]) -> str:
    """How many samples would decide these verdicts."""
    numbers = [verdict.num_samples_needed for verdict in verdicts if verdict.num_samples_needed is not None]
    if not numbers:
        return "; no practical number of samples would decide"
    some = " some of them" if len(numbers) < len(verdicts) else ""
    return f"; about {round_up(max(numbers)):,} samples would decide{some}"


def _names(candidates: Sequence[Candidate]) -> str:
    labels = [candidate.label for candidate in candidates]
    if len(labels) > _MAX_NAMES:
        return f"{', '.join(labels[:_MAX_NAMES])} and {len(labels) - _MAX_NAMES} more"
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def _result(candidate: Candidate, metric: MetricInfo) -> str:
    return f"{metric.title} {_with_unit(candidate.quality.mean, metric)} at {_number(candidate.cost_s)} s per image"


def _ratio(expensive: Candidate, cheap: Candidate) -> str:
    if not expensive.cost_s or not cheap.cost_s or expensive.cost_s <= cheap.cost_s * 1.05:
        return ""
    return f", {expensive.cost_s / cheap.cost_s:.2g} times cheaper than {expensive.label}"


def _with_unit(value: float, metric: MetricInfo) -> str:
    return f"{_number(value)} {metric.unit}" if metric.unit else _number(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
