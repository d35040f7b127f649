"""Means, intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.compare.statistics import difference_of, interval, mean_of

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


@given(VALUES)
def test_the_interval_contains_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    found = mean_of(values, range(len(values)))
    assert found.low is not None
    assert found.high is not None
    assert found.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found == mean_of(values, range(len(values))), "equal values have equal intervals"


def test_one_sample_has_no_interval() -> None:
    assert mean_of([1.0, 2.0], ["a", "a"]).low is None


def test_more_images_of_a_sample_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).normal(size=20)
    once = interval(values, range(20))
    often = interval(np.repeat(values, 10), [place // 10 for place in range(200)])
    assert often == pytest.approx(once)
    naive = interval(np.repeat(values, 10), range(200))
    assert naive[1] - naive[0] < 0.5 * (once[1] - once[0])  # type: ignore[operator]


def test_intervals_have_the_nominal_coverage() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = interval(rng.normal(size=40), range(40))
        assert low is not None
        assert high is not None
        covered += low < 0 < high
    assert 180 <= covered <= 199, "about 95 of 100"


def test_many_samples_use_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(size=6000)
    low, high = interval(values, range(6000))
    error = values.std(ddof=1) / np.sqrt(6000)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error))
    few = interval(values[:4999], range(4999))
    assert few[1] - few[0] == pytest.approx(2 * 1.96 * values[:4999].std() / np.sqrt(4999), rel=0.06)  # type: ignore[operator]


@given(VALUES, st.booleans())
def test_swapping_the_two_sides_negates_the_difference(values: list[float], higher: bool) -> None:
    other = list(reversed(values))
    there, back = (
        difference_of(values, other, range(len(values)), higher),
        difference_of(other, values, range(len(values)), higher),
    )
    assert there.difference == pytest.approx(-back.difference)
    assert there.win_rate is not None
    assert back.win_rate is not None
    assert there.win_rate + back.win_rate == pytest.approx(1), "equal pairs count half"


def test_win_rates_depend_on_the_direction_of_the_metric() -> None:
    values, baseline = [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 3.0, 5.0]
    assert difference_of(values, baseline, range(4), True).win_rate == 0.625
    assert difference_of(values, baseline, range(4), False).win_rate == 0.375
    assert difference_of(values, baseline, range(4), None).win_rate is None
