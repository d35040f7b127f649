"""Holm's procedure, and the error rates of verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from fluxexp.compare.statistics import mean_of
from fluxexp.compare.verdicts import ALPHA, Candidate, best_rivals, holm, judge, num_samples_needed
from fluxexp.metrics.catalog import info

SSIM = info("ssim_hole")
TOLERANCE = 0.1


def test_holm_tests_the_smallest_p_value_at_the_strictest_level() -> None:
    """The example of Holm's paper has other numbers; these are computed by hand: 0.05 / 4, 0.05 / 3, 0.05 / 2, 0.05."""
    levels, rejected = holm({1: 0.01, 2: 0.03, 3: 0.012, 4: 0.04})
    assert rejected == {1, 3}
    assert levels == pytest.approx({1: 0.05 / 4, 3: 0.05 / 3, 2: 0.05 / 2, 4: 0.05 / 2})
    assert holm({}) == ({}, set())
    assert holm({1: 0.0, 2: 0.0})[1] == {1, 2}


def test_the_number_of_samples_is_that_of_the_formula() -> None:
    """(1.645 + 0.842)^2 * 0.3^2 / 0.05^2 = 222.6"""
    assert num_samples_needed(0.3, 0.05) == pytest.approx(222.6, abs=0.1)
    assert num_samples_needed(0.3, 0.0) == float("inf")


def test_the_number_of_samples_of_a_point_that_loses_is_for_the_level_of_not_enough() -> None:
    """Points 0 and 1 are proven enough, so "enough" has the level 0.05 for point 2, but "not enough" 0.05 / 3."""
    signs = np.tile([1.0, -1.0], 20)

    def point(number: int, scores: np.ndarray) -> Candidate:
        values = {(f"s{n}", 0, 7): float(score) for n, score in enumerate(scores)}
        return Candidate(number, str(number), mean_of(list(values.values()), range(40)), 1.0, values)

    points = [point(0, 0.5 + 0 * signs), point(1, 0.5 + 0.001 * signs), point(2, 0.36 + 0.2 * signs)]
    found = judge(points, {p.number: points[:1] for p in points}, SSIM, TOLERANCE)
    assert [found[number].verdict for number in range(3)] == ["enough", "enough", "undecided"]
    deviation = 0.2 * (40 / 39) ** 0.5
    assert found[2].num_samples_needed == int(np.ceil(num_samples_needed(deviation, 0.04, ALPHA / 3)))


def candidates(rng: np.random.Generator, means: list[float], number: int) -> list[Candidate]:
    """Points with normal scores, which share half of their variance."""
    shared = rng.normal(0, 0.2, number)
    found = []
    for place, mean in enumerate(means):
        values = {(f"s{n}", 0, 7): float(mean + shared[n] + rng.normal(0, 0.2)) for n in range(number)}
        found.append(Candidate(place, str(place), mean_of(list(values.values()), range(number)), 1.0, values))
    return found


@pytest.mark.parametrize(
    ("means", "wrong"),
    [
        ([0.0, 0.0, 0.0, 0.1], {0: "enough", 1: "enough", 2: "enough", 3: "not enough"}),
        ([0.0, 0.09, 0.1], {1: "not enough", 2: "not enough"}),
        ([0.1, 0.1, 0.1], {0: "not enough", 1: "not enough", 2: "not enough"}),
    ],
)
def test_wrong_verdicts_are_rare(means: list[float], wrong: dict[int, str]) -> None:
    """Points at the limit of the tolerance are the hardest case: one wrong claim in the family has 5 %."""
    rng = np.random.default_rng(0)
    trials = 300
    errors = 0
    for _ in range(trials):
        points = candidates(rng, means, 24)
        rivals = best_rivals(points, SSIM)
        found = judge(points, {point.number: rivals for point in points}, SSIM, TOLERANCE)
        errors += any(found[number].verdict == claim for number, claim in wrong.items())
    assert errors <= trials * ALPHA + 3 * (trials * ALPHA * (1 - ALPHA)) ** 0.5
