"""Decides whether a candidate is still good, by one claim for each metric, and by the images that it lacks.

Each claim is a test of non-inferiority on pairs of images of the same sample and noise. A metric passes if the
one-sided confidence bound of its value is within the limit, fails if the value is proven to be beyond the limit, and is
else undecided. With several metrics, Holm's (1979) procedure sets the level of each bound, separately for passes and
fails. So the probability of a wrong pass, and that of a wrong fail, is at most 1 - `level`.

If all pairs of images are identical, from 8 samples on, every metric passes: then the two runs compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fluxexp.address import Address
from fluxexp.compare.intervals import MIN_SAMPLES, Evidence, evidence_of_difference, evidence_of_mean
from fluxexp.compare.verdicts import MAX_SAMPLES, holm, num_samples_needed
from fluxexp.gate.gate_metrics import GateMetric
from fluxexp.gate.gate_result import GateResult, GateVerdict, MetricResult, WorstPair
from fluxexp.gate.pair_values import PairValues, distances_of, is_identical, result_file, scores_of
from fluxexp.gate.run_pairs import RunPairs, read_pairs


@dataclass(frozen=True, slots=True)
class _Claim:
    """The values of a metric, and what they say about the true mean. No evidence: too few samples."""

    metric: GateMetric
    values: PairValues
    evidence: Evidence | None

    def p_pass(self) -> float:
        """Small if the mean is clearly within the limit."""
        if self.evidence is None:
            return 1.0
        limit = self.metric.limit
        return self.evidence.p_above(limit) if self.metric.higher_is_better else self.evidence.p_below(limit)

    def p_fail(self) -> float:
        """Small if the mean is clearly beyond the limit."""
        if self.evidence is None:
            return 1.0
        limit = self.metric.limit
        return self.evidence.p_below(limit) if self.metric.higher_is_better else self.evidence.p_above(limit)


def check_gate(
    candidate: Address,
    reference: Address,
    metrics: Sequence[GateMetric],
    level: float = 0.95,
    lpips_weights: str | None = None,
) -> GateResult:
    """Whether the run `candidate` is as good as the run `reference`, within the tolerances of `metrics`.

    Raises:
        ComparisonError: the runs cannot be compared.
        StorageError: one of them is not a run, or is damaged.
        ConfigError: the dataset of one of them is missing.
    """
    return judge_pairs(candidate, reference, read_pairs(candidate, reference), metrics, level, lpips_weights)


def judge_pairs(
    candidate: Address,
    reference: Address,
    runs: RunPairs,
    metrics: Sequence[GateMetric],
    level: float,
    lpips_weights: str | None = None,
) -> GateResult:
    """The gate of two runs that have been read."""
    claims = [_claim(runs, metric, lpips_weights) for metric in metrics]
    identical = all(map(_is_unchanged, claims)) and runs.num_samples >= MIN_SAMPLES and is_identical(runs)
    pass_levels, passed = holm({place: claim.p_pass() for place, claim in enumerate(claims)}, 1 - level)
    fail_levels, failed = holm({place: claim.p_fail() for place, claim in enumerate(claims)}, 1 - level)
    results = []
    for place, claim in enumerate(claims):
        verdict: GateVerdict = "undecided"
        if identical or place in passed:
            verdict = "pass"
        elif place in failed:
            verdict = "fail"
        results.append(_result(claim, runs, verdict, pass_levels[place], fail_levels[place]))
    return GateResult(candidate, reference, level, runs, identical, results)


def _claim(runs: RunPairs, metric: GateMetric, lpips_weights: str | None) -> _Claim:
    if metric.is_distance:
        values = distances_of(runs, metric.info.name, lpips_weights)
        return _Claim(metric, values, evidence_of_mean(values.candidate, _samples(values), is_flag=False))
    values = scores_of(runs, metric.info.name)
    assert values.reference is not None
    is_flag = metric.info.is_flag
    evidence = evidence_of_difference(values.candidate, values.reference, _samples(values), is_flag)
    return _Claim(metric, values, evidence)


def _is_unchanged(claim: _Claim) -> bool:
    """Whether the values allow that all images are identical."""
    values = claim.values
    if values.reference is not None:
        return list(values.candidate) == list(values.reference)
    return len(set(values.candidate)) == 1


def _result(claim: _Claim, runs: RunPairs, verdict: GateVerdict, pass_alpha: float, fail_alpha: float) -> MetricResult:
    values, higher = claim.values, claim.metric.higher_is_better
    gains = _gains(claim)
    low, high = _bounds(claim.evidence, *((pass_alpha, fail_alpha) if higher else (fail_alpha, pass_alpha)))
    is_score = values.reference is not None
    return MetricResult(
        metric=claim.metric,
        verdict=verdict,
        value=_mean(gains) * (1 if higher else -1) + 0.0,  # -0.0 becomes 0.0
        low=low,
        high=high,
        pass_level=1 - pass_alpha,
        fail_level=1 - fail_alpha,
        candidate_mean=_mean(values.candidate) if is_score else None,
        reference_mean=None if values.reference is None else _mean(values.reference),
        num_pairs=len(values.pairs),
        num_samples=len(set(_samples(values))),
        num_better=sum(gain > 0 for gain in gains) if is_score else 0,
        num_worse=sum(gain < 0 for gain in gains) if is_score else 0,
        num_samples_needed=_needed(claim, pass_alpha, fail_alpha) if verdict == "undecided" else None,
        worst=_worst(claim, runs, gains),
    )


def _gains(claim: _Claim) -> list[float]:
    """For each pair the value, in the direction of better ones."""
    sign = 1 if claim.metric.higher_is_better else -1
    values = claim.values
    if values.reference is None:
        return [sign * value for value in values.candidate]
    return [sign * (ours - theirs) for ours, theirs in zip(values.candidate, values.reference, strict=True)]


def _bounds(evidence: Evidence | None, low_alpha: float, high_alpha: float) -> tuple[float | None, float | None]:
    """The lower and the upper bound, each of which alone is wrong with the probability of its alpha."""
    if evidence is None:
        return None, None
    return evidence.interval(1 - 2 * low_alpha)[0], evidence.interval(1 - 2 * high_alpha)[1]


def _needed(claim: _Claim, pass_alpha: float, fail_alpha: float) -> int | None:
    """See `compare.verdicts.num_samples_needed`; None if the value is at the limit."""
    evidence = claim.evidence
    if evidence is None:
        return MIN_SAMPLES
    margin = evidence.mean - claim.metric.limit
    is_good = margin >= 0 if claim.metric.higher_is_better else margin <= 0
    number = num_samples_needed(evidence.deviation, margin, pass_alpha if is_good else fail_alpha)
    return max(evidence.num_samples + 1, math.ceil(number)) if number <= MAX_SAMPLES else None


def _worst(claim: _Claim, runs: RunPairs, gains: Sequence[float]) -> WorstPair | None:
    place = min(range(len(gains)), key=lambda number: (gains[number], claim.values.pairs[number].key))
    values, pair = claim.values, claim.values.pairs[place]
    if values.reference is not None and gains[place] >= 0:
        return None
    return WorstPair(
        sample_key=pair.key[0],
        image_index=pair.key[1],
        candidate=values.candidate[place],
        reference=None if values.reference is None else values.reference[place],
        candidate_file=result_file(runs.candidate, pair.candidate),
        reference_file=result_file(runs.reference, pair.reference),
    )


def _samples(values: PairValues) -> list[str]:
    return [pair.key[0] for pair in values.pairs]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
