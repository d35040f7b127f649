import pytest

from fluxexp.telemetry import RankLoad, balance, relative_speeds
from fluxexp.telemetry.slow_ranks import SLOW, RankPace, slow_ranks


def pace(rank: int, speed: float, seconds: float = 10.0) -> RankPace:
    """A rank that denoised for `seconds`, at `speed` units of work per second."""
    return RankPace(rank=rank, work=speed * seconds, work_s=seconds, working_s=seconds)


def test_a_slow_rank_is_named_although_stealing_kept_all_ranks_busy() -> None:
    loads = [RankLoad(rank=r, busy_s=10, wait_s=0, work=work, work_s=10) for r, work in enumerate((90, 90, 30, 90))]
    figures = balance(loads)
    assert (figures["imbalance"], figures["straggler"]) == (1, None)
    (slow,) = figures["slow_ranks"]
    assert slow["rank"] == 2
    assert slow["relative_speed"] == pytest.approx(1 / 3)
    # 300 units of work at 30 per second took 10 s; at 36 per second they would have taken 8.33 s.
    assert slow["cost_s"] == pytest.approx(10 - 300 / 36)


def test_without_stealing_the_others_wait_for_the_slow_rank() -> None:
    slow = RankPace(rank=1, work=30, work_s=30, working_s=31)
    (found,) = slow_ranks([pace(0, 3), slow, pace(2, 3)], steals=False)
    assert found["cost_s"] == pytest.approx(31 - 11)
    longest = RankPace(rank=2, work=75, work_s=25, working_s=25)
    (found,) = slow_ranks([pace(0, 3), slow, longest], steals=False)
    assert found["cost_s"] == pytest.approx(31 - 25), "the work takes as long as that of the slowest of the others"


def test_several_slow_ranks_are_listed_slowest_first() -> None:
    found = slow_ranks([pace(0, 4), pace(1, 2), pace(2, 4), pace(3, 1), pace(4, 4)], steals=True)
    assert [slow["rank"] for slow in found] == [3, 1]


@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 1.0), (1.0, SLOW + 0.01), (1.0, 1.4, 1.2)])
def test_usual_differences_are_not_reported(speeds: tuple[float, ...]) -> None:
    assert slow_ranks([pace(rank, speed) for rank, speed in enumerate(speeds)], steals=True) == []


def test_ranks_without_work_do_not_count() -> None:
    idle = RankPace(rank=2, work=0, work_s=0, working_s=0)
    assert [slow["rank"] for slow in slow_ranks([pace(0, 3), pace(1, 1), idle], steals=True)] == [1]
    assert relative_speeds({0: 3.0, 1: 1.5, 2: None}) == {0: 2, 1: 0.5}
    assert relative_speeds({0: 3.0, 1: None}) == {}
