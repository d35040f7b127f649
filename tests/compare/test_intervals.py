"""Intervals and p-values: known values, and properties that hold for all scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.compare.intervals import (
    MIN_SAMPLES,
    Evidence,
    evidence_of_difference,
    evidence_of_mean,
    one_sided_bounds,
)

FLAGS = st.integers(0, 1).map(float)
SCORES = st.one_of(FLAGS, st.floats(-100, 100, width=32))
LEVELS = st.floats(0.5, 0.99)
ROUNDING = 1e-6


@st.composite
def pairs(draw: st.DrawFn, scores: st.SearchStrategy[float] = SCORES) -> tuple[list[float], list[float], list[int]]:
    """Values, their baseline and their samples, with one or several images per sample."""
    number = draw(st.integers(MIN_SAMPLES, 20))
    samples = sorted([*range(number), *draw(st.lists(st.integers(0, number - 1), max_size=20))])
    values, baseline = (draw(st.lists(scores, min_size=len(samples), max_size=len(samples))) for _ in range(2))
    return values, baseline, samples


def known(evidence: Evidence | None) -> Evidence:
    assert evidence is not None
    return evidence


@given(pairs(), LEVELS)
def test_the_interval_contains_the_mean_and_grows_with_the_level(
    scores: tuple[list[float], list[float], list[int]], level: float
) -> None:
    values, baseline, samples = scores
    for evidence in (evidence_of_mean(values, samples), evidence_of_difference(values, baseline, samples)):
        low, high = known(evidence).interval(level)
        wider = known(evidence).interval((level + 1) / 2)
        assert low - ROUNDING <= known(evidence).mean <= high + ROUNDING
        assert wider[0] - ROUNDING <= low
        assert high <= wider[1] + ROUNDING


@given(pairs(FLAGS), LEVELS)
def test_intervals_of_proportions_are_possible_proportions(
    scores: tuple[list[float], list[float], list[int]], level: float
) -> None:
    values, baseline, samples = scores
    low, high = known(evidence_of_mean(values, samples)).interval(level)
    assert 0 <= low < high <= 1, "also if all scores are equal"
    low, high = known(evidence_of_difference(values, baseline, samples)).interval(level)
    assert -1 <= low < high <= 1


@given(pairs())
def test_swapping_the_two_sides_negates_everything(scores: tuple[list[float], list[float], list[int]]) -> None:
    values, baseline, samples = scores
    there = known(evidence_of_difference(values, baseline, samples))
    back = known(evidence_of_difference(baseline, values, samples))
    low, high = back.interval()
    assert there.interval() == pytest.approx((-high, -low), abs=ROUNDING)
    assert there.p_above(0.05) == pytest.approx(back.p_below(-0.05), abs=1e-9)
    assert there.deviation == pytest.approx(back.deviation)


@given(pairs(), st.floats(0.6, 0.99))
def test_p_values_agree_with_one_sided_bounds(scores: tuple[list[float], list[float], list[int]], level: float) -> None:
    """The bound at a level is the limit with the p-value 1 - level."""
    values, baseline, samples = scores
    evidence = known(evidence_of_difference(values, baseline, samples))
    low, high = one_sided_bounds(evidence, level)
    assert low <= high
    if evidence.deviation > 1e-3:
        for limit, p_value in ((low, evidence.p_above), (high, evidence.p_below)):
            if abs(limit) < 1 or abs(evidence.mean) > 1:
                assert p_value(limit) == pytest.approx(1 - level, abs=1e-3)


@given(st.lists(SCORES, max_size=MIN_SAMPLES - 1))
def test_too_few_samples_give_no_evidence(values: list[float]) -> None:
    often = [value for value in values for _ in range(5)]
    samples = [place // 5 for place in range(len(often))]
    assert evidence_of_mean(often, samples) is None
    assert evidence_of_difference(often, often, samples) is None


@pytest.mark.parametrize(
    ("successes", "number", "low", "high"),
    [(0, 10, 0, 0.3085), (10, 10, 0.6915, 1), (7, 10, 0.3475, 0.9333), (15, 48, 0.1865, 0.4625)],
)
def test_the_interval_of_a_proportion_is_that_of_clopper_and_pearson(
    successes: int, number: int, low: float, high: float
) -> None:
    from scipy.stats import binomtest

    expected = binomtest(successes, number).proportion_ci(method="exact")
    found = known(evidence_of_mean(flags(successes, number), range(number)))
    assert found.interval() == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.interval() == pytest.approx((low, high), abs=2e-3)
    assert found.p_above(0.4) == pytest.approx(binomtest(successes, number, 0.4, "greater").pvalue)
    assert found.p_below(0.4) == pytest.approx(binomtest(successes, number, 0.4, "less").pvalue)


def test_the_interval_of_a_paired_difference_is_that_of_tango() -> None:
    """The example of the paper: 43 agreeing pairs, one of 44 pairs differs (Tango 1998, crossover trial of lenses)."""
    values, baseline = [*flags(43, 43), 0.0], [*flags(43, 43), 1.0]
    low, high = known(evidence_of_difference(values, baseline, range(44))).interval()
    assert (low, high) == pytest.approx((-0.118, 0.0610), abs=2e-3)


def test_without_a_difference_the_interval_of_a_paired_difference_is_not_empty() -> None:
    """With z = 1.96, the ends are z^2 / (n + z^2)."""
    low, high = known(evidence_of_difference([1.0] * 48, [1.0] * 48, range(48))).interval()
    assert high == pytest.approx(1.96**2 / (48 + 1.96**2), rel=1e-3)
    assert low == pytest.approx(-high)


def test_equal_scores_of_a_continuous_metric_are_no_flags() -> None:
    """Identical images have an SSIM of 1, which is not a success in a number of trials."""
    assert known(evidence_of_mean([1.0] * 8, range(8), is_flag=False)).interval() == (1, 1)
    assert known(evidence_of_mean([1.0] * 8, range(8))).interval()[0] < 0.7


def test_values_without_skewness_have_the_t_interval() -> None:
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).normal(3, 2, 20)
    values = np.concatenate([values, 6 - values])  # symmetric
    expected = ttest_1samp(values, 0).confidence_interval()
    found = known(evidence_of_mean(values, range(40)))
    assert found.interval() == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert found.p_above(2.5) == pytest.approx(ttest_1samp(values, 2.5, alternative="greater").pvalue)


def test_skewed_values_have_a_longer_interval_on_the_long_side() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    found = known(evidence_of_mean(values, range(30)))
    low, high = found.interval()
    assert high - found.mean > 1.2 * (found.mean - low)


@pytest.mark.parametrize("kind", ["normal", "flags"])
def test_more_images_of_a_sample_do_not_narrow_the_interval(kind: str) -> None:
    values = np.random.default_rng(1).normal(size=40)
    if kind == "flags":
        values = (values > 0).astype(np.float64)
    once = width(values, range(40))
    often = width(np.repeat(values, 10), [place // 10 for place in range(400)])
    assert often == pytest.approx(once, rel=0.05)
    assert width(np.repeat(values, 10), range(400)) < 0.5 * once


def width(values: np.ndarray, samples: Sequence[int]) -> float:
    low, high = known(evidence_of_mean(values, samples)).interval()
    return high - low


def flags(successes: int, number: int) -> list[float]:
    return [1.0] * successes + [0.0] * (number - successes)
