"""Figures of ranks over the time since the last look."""

import pytest

from fluxexp.telemetry import RankFigures, Totals, Windows

T0 = 1_800_000_000.0


def rank(until_s: float, *, finished_s: float | None = None, **totals: float) -> RankFigures:
    values = Totals(until_s=T0 + until_s, **totals)  # type: ignore[arg-type]
    return RankFigures(
        totals=values,
        utilization=0.5,
        memory_gib=8.0,
        finished_s=None if finished_s is None else T0 + finished_s,
    )


def test_an_idle_rank_is_not_busy_although_it_was_busy_before() -> None:
    windows = Windows(T0)
    both = windows.next({0: rank(9, busy_s=9, num_images=9), 1: rank(10, busy_s=10, num_images=10)}, T0 + 10)
    assert [both.ranks[number]["busy"] for number in (0, 1)] == [1, 1]
    idle = rank(9, busy_s=9, num_images=9, finished_s=10)
    window = windows.next({0: idle, 1: rank(20, busy_s=20, num_images=20)}, T0 + 20)
    assert window.ranks[0] == {
        **{"busy": 0, "queue": 0, "idle": pytest.approx(10 / 11), "images_per_s": 0, "work_per_s": 0},
        **{"speed": None, "utilisation": 0.5, "memory_gib": 8, "images": 9},
    }
    assert (window.ranks[1]["busy"], window.ranks[1]["idle"], window.ranks[1]["images_per_s"]) == (1, 0, 1)
    assert window.imbalance == 2
    assert (both.images_per_s, window.images_per_s) == (1.9, 1.0)
    last = windows.next({0: idle, 1: rank(25, busy_s=25, num_images=25)}, T0 + 25)
    assert (last.ranks[0]["busy"], last.ranks[0]["idle"], last.idle_s) == (0, 1, 15)


def test_a_batch_that_is_longer_than_a_window_is_counted_when_it_ends() -> None:
    windows = Windows(T0)
    assert windows.next({0: rank(4, busy_s=4, num_images=1)}, T0 + 5).ranks[0]["busy"] == 1
    during = windows.next({0: rank(4, busy_s=4, num_images=1)}, T0 + 10)
    assert during.ranks[0] == {
        **dict.fromkeys(("busy", "queue", "idle", "images_per_s", "work_per_s", "speed")),
        **{"utilisation": 0.5, "memory_gib": 8, "images": 1},
    }
    assert during.images_per_s == 0
    after = windows.next({0: rank(14, busy_s=12, wait_s=2, num_images=3)}, T0 + 15).ranks[0]
    assert (after["busy"], after["images_per_s"]) == (0.8, 0.2)
    assert after["queue"] == pytest.approx(0.2)


def test_the_speed_of_a_rank_is_that_of_its_last_window() -> None:
    windows = Windows(T0)
    even = {number: rank(10, work=100.0, work_s=10.0) for number in range(3)}
    assert windows.next(even, T0 + 10).session_values(0, None)["load/slowest_speed"] == 1
    throttled = even | {2: rank(20, work=125.0, work_s=20.0)}
    window = windows.next(throttled, T0 + 20)
    assert [window.ranks[number]["speed"] for number in range(3)] == [None, None, 0.25]
    assert window.session_values(0, None)["load/slowest_speed"] == 0.25
    assert window.ranks[2]["work_per_s"] == 2.5


def test_done_and_total_count_earlier_sessions() -> None:
    window = Windows(T0).next({0: rank(1, num_images=3, num_failed=1), 1: rank(1, num_images=2)}, T0 + 1)
    values = window.session_values(resumed=7, total=20)
    assert (values["progress/done"], values["progress/failed"], values["progress/total"]) == (12, 1, 20)


def test_no_throughput_is_computed_over_an_instant() -> None:
    windows = Windows(T0)
    windows.next({0: rank(1, num_images=1)}, T0 + 1)
    assert windows.next({0: rank(1.01, num_images=2)}, T0 + 1.01).images_per_s is None
    assert windows.next({0: rank(2, num_images=3)}, T0 + 2).images_per_s == 2


def test_before_any_batch_all_shares_are_unknown() -> None:
    none_yet = RankFigures(totals=Totals(), utilization=None, memory_gib=None, finished_s=None)
    window = Windows(T0).next({0: none_yet}, T0 + 5)
    assert (window.ranks[0]["busy"], window.ranks[0]["images"], window.imbalance) == (None, 0, None)
