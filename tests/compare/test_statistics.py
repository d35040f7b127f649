"""Means and paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.compare.statistics import difference_of, mean_of

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@given(VALUES)
def test_a_mean_has_an_interval_from_8_samples_on(values: list[float]) -> None:
    found = mean_of(values, range(len(values)))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.num == len(values)
    assert (found.low is None) == (found.high is None) == (len(values) < 8)
    assert found == mean_of(values, range(len(values))), "equal values have equal intervals"


def test_images_of_one_sample_are_one_observation() -> None:
    assert mean_of([1.0, 2.0] * 20, ["a"] * 40).low is None


@given(VALUES, st.booleans())
def test_swapping_the_two_sides_negates_the_difference(values: list[float], higher: bool) -> None:
    other = [*values[1:], values[0]]
    there, back = (
        difference_of(values, other, range(len(values)), higher),
        difference_of(other, values, range(len(values)), higher),
    )
    assert there.difference == pytest.approx(-back.difference)
    assert there.num_ties == back.num_ties
    if there.num_ties == len(values):
        assert there.win_rate is back.win_rate is None
    else:
        assert there.win_rate is not None
        assert back.win_rate is not None
        assert there.win_rate + back.win_rate == pytest.approx(1), "equal pairs count for neither side"


def test_win_rates_depend_on_the_direction_of_the_metric() -> None:
    values, baseline = [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 3.0, 5.0]
    assert difference_of(values, baseline, range(4), True).win_rate == pytest.approx(2 / 3)
    assert difference_of(values, baseline, range(4), False).win_rate == pytest.approx(1 / 3)
    assert difference_of(values, baseline, range(4), None).win_rate is None
    assert difference_of(values, baseline, range(4), True).num_ties == 1
    assert difference_of(values, values, range(4), True).win_rate is None, "there are only equal pairs"
