"""The Pareto front, and the cheapest point that is shown to be good enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.compare.decision import decide, decide_without_truths, pareto
from fluxexp.compare.statistics import Mean, mean_of
from fluxexp.compare.verdicts import Candidate
from fluxexp.metrics.catalog import MetricInfo, info

ADHERENCE = info("adherence")
SSIM = info("ssim_hole")
TO_REFERENCE = info("ssim_to_reference")


def candidate(
    number: int, values: Sequence[float], cost_s: float | None, ends_s: tuple[float, float] | None = None
) -> Candidate:
    pairs = {(f"sample-{place}", 0, 7): value for place, value in enumerate(values)}
    mean = mean_of(values, range(len(values)))
    return Candidate(number, f"steps={number}", mean, cost_s, pairs, *(ends_s or (None, None)))


def reference(number: int, num: int, cost_s: float) -> Candidate:
    pairs = {(f"sample-{place}", 0, 7): 1.0 for place in range(num)}
    return Candidate(number, f"steps={number}", Mean(1.0, 1.0, 1.0, num), cost_s, pairs)


def around(mean: float, number: int = 48, noise: float = 0.001, seed: int = 0) -> list[float]:
    """Scores with exactly this mean."""
    values = np.random.default_rng(seed).normal(0, noise, number)
    return [float(value) for value in mean + values - values.mean()]


def answer(points: Sequence[Candidate], metric: MetricInfo, tolerance: float) -> dict[str, Any]:
    found = decide(points, metric, tolerance)
    assert found is not None
    return found


def verdicts(found: dict[str, Any]) -> dict[int, str]:
    return {verdict["point"]: verdict["verdict"] for verdict in found["verdicts"]}


def test_the_cheapest_point_that_is_shown_to_be_within_the_tolerance_is_the_answer() -> None:
    points = [candidate(1, around(0.5), 1.0), candidate(4, around(0.936), 4.0), candidate(8, around(0.94), 8.0)]
    found = answer(points, SSIM, 0.01)
    assert (found["best"], found["cheapest"], found["decided"]) == (8, 4, True)
    assert verdicts(found) == {1: "not enough", 4: "enough", 8: "enough"}
    assert found["sentence"] == (
        "steps=4 is good enough: SSIM, masked 0.936 (best: 0.94 with steps=8) at 4 s per image, "
        "2 times cheaper than steps=8. With 95 % confidence, no other point is better by more than 0.01 (48 samples). "
        "Every cheaper point is worse than another point by more than 0.01."
    )


def test_a_mean_within_the_tolerance_is_not_enough_evidence() -> None:
    """Two of 48 results differ between the points: the true loss can be 0.1."""
    points = [candidate(4, [0.0] + [1.0] * 47, 4.0), candidate(8, [1.0] * 48, 8.0)]
    found = answer(points, ADHERENCE, 0.03)
    assert (found["best"], found["cheapest"], found["decided"]) == (8, 8, False), "the next better point is kept"
    doubtful = next(verdict for verdict in found["verdicts"] if verdict["point"] == 4)
    assert doubtful["verdict"] == "undecided"
    assert doubtful["rival"] == 8
    assert doubtful["bound"] > 0.03
    assert doubtful["num_samples_needed"] > 48
    assert "steps=4, which is cheaper, is undecided; about " in found["sentence"]


def test_enough_samples_decide() -> None:
    """The same fractions as above, with the number of samples that the answer asks for."""
    few = answer([candidate(4, [0.0] + [1.0] * 47, 4.0), candidate(8, [1.0] * 48, 8.0)], ADHERENCE, 0.03)
    number = max(verdict["num_samples_needed"] for verdict in few["verdicts"])
    lost = round(number / 48)
    points = [candidate(4, [0.0] * lost + [1.0] * (number - lost), 4.0), candidate(8, [1.0] * number, 8.0)]
    found = answer(points, ADHERENCE, 0.03)
    assert (found["cheapest"], found["decided"]) == (4, True)
    assert all(verdict["bound"] <= 0.03 for verdict in found["verdicts"])


def test_the_best_point_is_named_with_its_doubt_if_others_may_be_better() -> None:
    rng = np.random.default_rng(0)
    noisy = {number: rng.normal(0.5 + number / 1000, 0.3, 20).tolist() for number in (1, 2, 4)}
    found = answer([candidate(number, values, float(number)) for number, values in noisy.items()], SSIM, 0.01)
    assert not found["decided"]
    assert set(verdicts(found).values()) == {"undecided"}
    best = found["best"]
    assert found["cheapest"] == best
    assert found["sentence"].startswith(f"steps={best} has the best mean")
    assert "may be better by more than 0.01 (20 samples; about " in found["sentence"]


def test_too_few_samples_are_said() -> None:
    found = answer([candidate(1, [0.5, 0.5], 1.0), candidate(8, [0.9, 0.9], 8.0)], SSIM, 0.02)
    assert (found["best"], found["cheapest"], found["decided"]) == (8, 8, False)
    assert "There are too few samples for a verdict: at least 8 are needed." in found["sentence"]
    assert [verdict["bound"] for verdict in found["verdicts"]] == [None, None]


def test_points_without_common_samples_get_no_verdict() -> None:
    points = [Candidate(n, f"steps={n}", Mean(n, None, None, 60), float(n), {}) for n in (1, 2)]
    found = answer(points, info("fid"), 0.5)
    assert not found["decided"]
    assert "no scores of the same samples" in found["sentence"]


def test_of_points_that_cost_as_much_the_better_one_is_chosen() -> None:
    points = [
        candidate(1, around(0.5), 1.0, (0.9, 1.1)),
        candidate(4, around(0.935), 4.0, (3.6, 4.4)),
        candidate(5, around(0.938), 4.2, (3.8, 4.6)),
        candidate(8, around(0.94), 8.0, (7.6, 8.4)),
    ]
    found = answer(points, SSIM, 0.01)
    assert (found["cheapest"], found["ties"], found["decided"]) == (5, [4], True)
    assert "steps=4 costs as much, within the accuracy of the costs." in found["sentence"]


def test_lower_is_better_for_some_metrics() -> None:
    lower = MetricInfo("d", "Distance", "", False, "", 0.1)
    found = answer([candidate(1, around(0.2), 1.0), candidate(8, around(0.15), 8.0)], lower, 0.1)
    assert (found["best"], found["cheapest"], found["decided"]) == (8, 1, True)
    (loss,) = [verdict["bound"] for verdict in found["verdicts"] if verdict["point"] == 1]
    assert 0.049 < loss < 0.051


def test_there_is_no_answer_without_costs_or_direction() -> None:
    points = [candidate(1, [0.5], 1.0), candidate(2, [0.6], None)]
    assert decide(points, ADHERENCE, 0.02) is None
    assert decide([candidate(1, [0.5], 1.0), candidate(2, [0.6], 2.0)], info("hole_change"), 0.02) is None


def test_without_truths_each_reference_has_its_own_answer() -> None:
    groups = {
        16: [candidate(4, around(0.97), 4.0), candidate(8, around(0.995), 8.0), reference(16, 48, 16.0)],
        17: [candidate(5, around(0.96), 4.0), reference(17, 48, 16.0)],
    }
    found = decide_without_truths(groups, TO_REFERENCE, 0.01)
    assert found is not None
    assert (found["best"], found["cheapest"], found["decided"]) == (None, None, True)
    first, second = found["groups"]
    assert (first["reference"], first["closest"], first["cheapest"]) == (16, 8, 8)
    assert (second["reference"], second["closest"], second["cheapest"]) == (17, 5, 17)
    assert first["sentence"] == (
        "Closest to steps=16: steps=8, SSIM to reference 0.995 at 8 s per image, 2 times cheaper than steps=16. "
        "steps=8 is close enough. With 95 % confidence, its mean is within 0.01 of identical images (48 samples). "
        "Every cheaper point is further away than 0.01."
    )
    assert second["sentence"] == (
        "Closest to steps=17: steps=5, SSIM to reference 0.96 at 4 s per image, 4 times cheaper than steps=17. "
        "Every cheaper point is further than 0.01 from identical images."
    )
    assert found["sentence"] == f"{first['sentence']} {second['sentence']}"
    assert "best" not in found["sentence"]
    assert verdicts(found) == {4: "not enough", 8: "enough", 16: "enough", 5: "not enough", 17: "enough"}


def test_one_reference_gives_one_answer() -> None:
    found = decide_without_truths({8: [candidate(4, around(0.995), 4.0), reference(8, 48, 8.0)]}, TO_REFERENCE, 0.01)
    assert found is not None
    assert (found["best"], found["cheapest"]) == (None, 4)
    assert decide_without_truths({8: [reference(8, 48, 8.0)]}, TO_REFERENCE, 0.01) is None


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


def test_a_metric_without_a_direction_has_no_pareto_front() -> None:
    points = [candidate(1, [0.5], 1.0), candidate(2, [0.6], 2.0)]
    assert pareto(points, "hole_change") == set()
    assert pareto(points, None) == set()


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.01, 0.3]))
def test_the_answer_does_not_depend_on_the_order_of_the_points(seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    points = [candidate(number, rng.normal(number, 1, 12).tolist(), 1.0 + number) for number in range(4)]
    there, back = answer(points, SSIM, tolerance), answer(points[::-1], SSIM, tolerance)
    assert verdicts(there) == verdicts(back)
    assert {**there, "verdicts": 0} == {**back, "verdicts": 0}
