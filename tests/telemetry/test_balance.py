import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.telemetry import RankLoad, balance

seconds = st.floats(min_value=0, max_value=1e6, allow_nan=False)
loads = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=16).map(
    lambda pairs: [RankLoad(rank=rank, busy_s=busy, wait_s=wait) for rank, (busy, wait) in enumerate(pairs)]
)
worked = loads.filter(lambda ranks: sum(load.busy_s for load in ranks) > 1e-3)

UNKNOWN: dict[str, Any] = {
    **dict.fromkeys(("imbalance", "efficiency", "straggler", "cause", "idle_s")),
    "slow_ranks": [],
}


def even(*busy_s: float, wait_s: float = 0.0) -> list[RankLoad]:
    return [RankLoad(rank=rank, busy_s=busy, wait_s=wait_s) for rank, busy in enumerate(busy_s)]


@given(worked)
def test_figures_stay_in_their_bounds(ranks: list[RankLoad]) -> None:
    figures = balance(ranks)
    assert figures["imbalance"] is not None
    assert figures["efficiency"] is not None
    assert 1 <= figures["imbalance"] <= len(ranks) * (1 + 1e-9)
    assert 0 < figures["efficiency"] <= 1


@given(worked, st.randoms())
def test_the_order_of_ranks_does_not_matter(ranks: list[RankLoad], random: object) -> None:
    shuffled = list(ranks)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert balance(shuffled) == balance(ranks)


@given(worked)
def test_a_straggler_is_named_only_if_it_took_clearly_longer(ranks: list[RankLoad]) -> None:
    working = [load.busy_s + load.wait_s for load in ranks]
    straggler = balance(ranks)["straggler"]
    assert (straggler is not None) == (max(working) >= 1.1 * math.fsum(working) / len(working))
    if straggler is not None:
        assert working[straggler] == max(working)


def test_one_rank_doing_everything() -> None:
    figures = dict(balance(even(0, 8, 0, 0)))
    assert figures == UNKNOWN | {
        "imbalance": pytest.approx(4),
        "efficiency": pytest.approx(0.25),
        "straggler": 1,
        "idle_s": 0,
    }


def test_even_work_has_no_straggler() -> None:
    assert dict(balance(even(5, 5, 5))) == UNKNOWN | {"imbalance": 1, "efficiency": 1, "idle_s": 0}


def test_waiting_lowers_efficiency() -> None:
    assert balance(even(4, 4, wait_s=4))["efficiency"] == pytest.approx(0.5)


@pytest.mark.parametrize("ranks", [[], even(0, 0)])
def test_without_work_the_balance_is_unknown(ranks: list[RankLoad]) -> None:
    assert dict(balance(ranks)) == UNKNOWN


def test_idle_time_lowers_efficiency() -> None:
    ranks = [RankLoad(rank=0, busy_s=4, wait_s=0), RankLoad(rank=1, busy_s=2, wait_s=0, idle_s=2)]
    assert balance(ranks)["efficiency"] == pytest.approx(0.75)
    assert balance(ranks)["idle_s"] == 2


@pytest.mark.parametrize(
    ("cause", "straggler"),
    [
        ("slower device", {"busy_s": 30.0, "num_images": 10}),
        ("less memory", {"busy_s": 30.0, "num_images": 10, "batch_size": 2.0}),
        ("more work", {"busy_s": 20.0, "num_images": 20}),
        ("slow disk", {"busy_s": 10.0, "wait_s": 9.0, "num_images": 10}),
    ],
)
def test_the_likely_cause_of_a_straggler(cause: str, straggler: dict[str, Any]) -> None:
    usual = {"busy_s": 10.0, "wait_s": 0.5, "num_images": 10, "batch_size": 8.0}
    ranks = [RankLoad(rank=rank, **{**usual, **(straggler if rank == 2 else {})}) for rank in range(4)]
    figures = balance(ranks)
    assert figures["straggler"] == 2
    assert str(figures["cause"]).startswith(cause)
