from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore  # type: ignore[attr-defined]

from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.stealing import Shard, TakenRange, WorkSource, prepare_queue
from fluxexp.parallel.tcp_coordinator import TCPStoreCoordinator


def sources(costs: Sequence[Sequence[float]], schedule: Any = "steal") -> list[WorkSource]:
    coordinators = LocalCoordinator.group(len(costs))
    prepare_queue(coordinators[0], len(costs))
    return [WorkSource(coordinators[rank], rank, costs, schedule) for rank in range(len(costs))]


def positions(taken: TakenRange) -> list[tuple[int, int]]:
    return [(taken.owner, position) for position in range(taken.first, taken.last)]


@given(st.integers(0, 30), st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60))
def test_a_shard_gives_each_position_once_from_both_ends(length: int, takes: list[tuple[bool, int]]) -> None:
    shard = Shard(LocalCoordinator(), "s", length)
    given_away: list[int] = []
    for front, wanted in takes:
        taken = shard.take_front(wanted) if front else shard.take_back(wanted)
        left = [position for position in range(length) if position not in given_away]
        expected = left[:wanted] if front else left[-wanted:]
        assert list(taken) == expected
        given_away += taken
    assert len(set(given_away)) == len(given_away)


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.floats(0.1, 10), max_size=12), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
    st.sampled_from(["static", "steal"]),
)
def test_each_position_is_taken_once_in_any_order_of_events(costs: list[list[float]], dice: Any, schedule: str) -> None:
    working = dict(enumerate(sources(costs, schedule)))
    made: Counter[tuple[int, int]] = Counter()
    while working:
        rank = dice.choice(sorted(working))
        taken = working[rank].take(dice.randint(1, 4))
        if taken is None:
            del working[rank]
            continue
        assert schedule == "steal" or taken.owner == rank
        made.update(positions(taken))
        if dice.random() < 0.7:
            working[rank].report(dice.uniform(0.01, 5), working[rank].cost(taken))
    assert made == Counter({(rank, index): 1 for rank, shard in enumerate(costs) for index in range(len(shard))})


def test_threads_over_a_torch_store_never_take_a_position_twice() -> None:
    store = HashStore()
    costs = [[1.0] * 400, [1.0] * 3, [], [5.0] * 50]
    coordinators = [TCPStoreCoordinator(store, "run", rank, 4) for rank in range(4)]
    prepare_queue(coordinators[0], 4)

    def work(rank: int) -> list[tuple[int, int]]:
        source = WorkSource(coordinators[rank], rank, costs, "steal")
        made: list[tuple[int, int]] = []
        while taken := source.take(3):
            made += positions(taken)
            source.report(0.001 * (rank + 1), source.cost(taken))
        return made

    with ThreadPoolExecutor(4) as pool:
        made = Counter(position for part in pool.map(work, range(4)) for position in part)
    assert len(made) == 453
    assert set(made.values()) == {1}


def test_a_rank_without_work_takes_from_the_back_of_the_slowest() -> None:
    quick, slow, slower = sources([[1.0], [1.0] * 10, [1.0] * 10])
    for source, seconds in ((quick, 1.0), (slow, 2.0), (slower, 4.0)):
        taken = source.take(1)
        assert taken
        source.report(seconds, source.cost(taken))
    assert quick.take(2) == TakenRange(2, 8, 10)
    assert (quick.num_steals, quick.num_stolen) == (1, 2)


def test_a_slow_rank_leaves_the_last_task_to_a_quick_one() -> None:
    quick, slow = sources([[1.0, 1.0], [1.0]])
    for source, seconds in ((quick, 1.0), (slow, 3.0)):
        taken = source.take(1)
        assert taken
        source.report(seconds, source.cost(taken))
    assert slow.take(1) is None, "it would need three times as long"
    assert quick.take(1) == TakenRange(0, 1, 2)


def test_others_work_through_the_shard_of_a_rank_that_never_starts() -> None:
    present, _absent = sources([[1.0] * 3, [1.0] * 5])
    made = []
    while taken := present.take(2):
        made += positions(taken)
        present.report(1.0, present.cost(taken))
    assert len(made) == 8


def test_slow_ranks_take_the_rest_after_a_quick_rank_gives_up() -> None:
    quick, slow = sources([[1.0] * 8, [1.0]])
    for rank, seconds in ((quick, 1.0), (slow, 3.5)):
        rank.take(1)
        rank.report(seconds, 1.0)
    quick.give_up()
    taken = [position for _ in range(20) if (one := slow.take(4)) for position in positions(one)]
    assert sorted(taken) == [(0, position) for position in range(1, 8)]


def test_near_the_end_a_rank_takes_less_than_a_full_batch() -> None:
    first, second = sources([[1.0] * 9, [1.0] * 1])
    assert second.take(8) == TakenRange(1, 0, 1)
    taken = first.take(8)
    assert taken is not None
    assert taken.last - taken.first <= 3, "half of its fair part of the nine that are left"


def makespan(costs: Sequence[Sequence[float]], paces: Sequence[float], batch_size: int) -> float:
    """When the last rank ends, on a virtual clock. A batch takes its cost times the pace of its rank."""
    working = sources(costs)
    ready, end = [(0.0, rank) for rank in range(len(paces))], 0.0
    while ready:
        now, rank = heapq.heappop(ready)
        if (taken := working[rank].take(batch_size)) is None:
            end = max(end, now)
            continue
        cost = working[rank].cost(taken)
        working[rank].report(paces[rank] * cost, cost)
        heapq.heappush(ready, (now + paces[rank] * cost, rank))
    return end


def test_a_slow_rank_begins_no_costly_batch_at_the_end() -> None:
    """Batches of cheap and costly tasks alternate. Half a shard of the slow rank is left, but others take it, too."""
    cycle = [16.0] * 10 + [8.0] * 10 + [4.0] * 10 + [2.0] * 10 + [1.0] * 10
    costs = [[*reversed(cycle), *cycle] for _ in range(8)]
    paces = [3.0] + [1.0] * 7
    bound = sum(map(sum, costs)) / sum(1 / pace for pace in paces)
    assert makespan(costs, paces, 10) < 1.2 * bound


@pytest.mark.parametrize("schedule", ["static", "steal"])
def test_one_rank_takes_whole_batches_to_the_end(schedule: str) -> None:
    (alone,) = sources([[1.0] * 10], schedule)
    assert [alone.take(4), alone.take(4), alone.take(4), alone.take(4)] == [
        TakenRange(0, 0, 4),
        TakenRange(0, 4, 8),
        TakenRange(0, 8, 10),
        None,
    ]


def test_upcoming_positions_are_known_for_prefetch() -> None:
    first, second = sources([[1.0] * 10, []])
    assert first.upcoming == range(10)
    first.take(1)
    assert first.upcoming == range(1, 10)
    assert second.upcoming == range(0)
