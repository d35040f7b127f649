"""The Pareto front, and the cheapest point that is good enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fluxexp.compare.decision import Candidate, decide, pareto
from fluxexp.compare.statistics import mean_of
from fluxexp.metrics.catalog import MetricInfo, info

ADHERENCE = info("adherence")


def candidate(number: int, values: list[float], cost_s: float | None) -> Candidate:
    pairs = {(f"sample-{place}", 0, 7): value for place, value in enumerate(values)}
    return Candidate(number, f"steps={number}", mean_of(values, range(len(values))), cost_s, pairs)


def test_the_cheapest_point_within_the_tolerance_is_good_enough() -> None:
    points = [candidate(1, [0.5] * 9, 1.0), candidate(4, [0.93] * 9, 4.0), candidate(8, [0.94] * 9, 8.0)]
    found = decide(points, ADHERENCE, 0.02)
    assert found is not None
    assert (found["best"], found["cheapest"]) == (8, 4)
    assert found["sentence"] == (
        "steps=4 is good enough: Adherence 0.93 (best: 0.94 with steps=8) at 4 s per image, 2 times cheaper. "
        "With 95 % confidence, the loss is at most 0.02 (on 9 images)."
    )


def test_a_possible_loss_above_the_tolerance_is_stated() -> None:
    points = [candidate(4, [1.0, 0.0, 1.0, 1.0], 4.0), candidate(8, [0.0, 1.0, 1.0, 1.0], 8.0)]
    found = decide(points, ADHERENCE, 0.02)
    assert found is not None
    assert found["cheapest"] == 4
    equal = decide([*points[1:], candidate(4, [1.0, 1.0, 0.0, 1.0], 4.0), candidate(9, [1.0] * 4, 9.0)], ADHERENCE, 0.3)
    assert equal is not None
    assert "(on 4 images), which is above the tolerance" in equal["sentence"]


def test_the_best_point_is_chosen_if_no_cheaper_one_is_within_the_tolerance() -> None:
    found = decide([candidate(1, [0.5, 0.5], 1.0), candidate(8, [0.9, 0.9], 8.0)], ADHERENCE, 0.02)
    assert found is not None
    assert (found["best"], found["cheapest"]) == (8, 8)
    assert "No cheaper point is within 0.02 of it" in found["sentence"]


def test_lower_is_better_for_some_metrics() -> None:
    lower = MetricInfo("d", "Distance", "", False, "", 0.1)
    found = decide([candidate(1, [0.2, 0.25], 1.0), candidate(8, [0.15, 0.2], 8.0)], lower, 0.1)
    assert found is not None
    assert (found["best"], found["cheapest"]) == (8, 1)


def test_there_is_no_answer_without_costs_or_direction() -> None:
    points = [candidate(1, [0.5], 1.0), candidate(2, [0.6], None)]
    assert decide(points, ADHERENCE, 0.02) is None
    assert decide([candidate(1, [0.5], 1.0), candidate(2, [0.6], 2.0)], info("hole_change"), 0.02) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=12))
def test_every_point_off_the_pareto_front_is_dominated_by_one_on_it(values: list[tuple[int, int]]) -> None:
    points = [candidate(number, [float(quality)] * 2, float(cost)) for number, (quality, cost) in enumerate(values)]
    front = pareto(points, "adherence")
    assert front
    for number, (quality, cost) in enumerate(values):
        beaten = any(
            values[other][0] >= quality and values[other][1] <= cost and values[other] != (quality, cost)
            for other in front
        )
        assert beaten == (number not in front)
