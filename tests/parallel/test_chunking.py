"""Chunks are dealt to workers that come and go: each task once, sized by pace, smaller at the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.parallel.chunking import Chunk, ChunkDealer, Pile


def work(dealer: ChunkDealer, worker: int) -> Chunk | None:
    if dealer.group_for(worker) is None:
        return None
    return dealer.deal(worker)


def test_a_pile_gives_batches_until_a_pace_is_known_and_alone_tasks_first() -> None:
    pile = Pile([1.0] * 12, 4, alone=range(10, 12))
    assert pile.take(None, 1) == ([10], True)
    assert pile.take(None, 1) == ([11], True)
    assert pile.take(None, 1) == (range(4), False)
    assert pile.take(5.0, 1) == (range(4, 9), False)
    assert pile.take(5.0, 1) == (range(9, 10), False)
    assert len(pile) == 0
    assert pile.left_cost == 0


def test_what_comes_back_is_dealt_first_and_alone_if_it_may_end_a_process() -> None:
    pile = Pile([1.0, 2.0, 3.0, 4.0], 2)
    positions, _ = pile.take(None, 1)
    pile.give_back(positions, alone=[1])
    assert pile.left_cost == 10.0
    assert pile.take(None, 1) == ([1], True)
    assert pile.take(None, 1) == ([0], False)
    assert pile.take(None, 1) == (range(2, 4), False)


def test_positions_that_are_alone_must_be_last() -> None:
    with pytest.raises(ValueError, match="last ones"):
        Pile([1.0, 1.0], 1, alone=[0])


def test_a_fast_worker_gets_more_and_chunks_shrink_at_the_end() -> None:
    dealer = ChunkDealer([Pile([1.0] * 10_000, 4)], chunk_s=60.0)
    for worker in (0, 1):
        dealer.join(worker)
        assert work(dealer, worker) is not None
    dealer.note_pace(0, 0.1)
    dealer.note_pace(1, 1.0)
    fast, slow = work(dealer, 0), work(dealer, 1)
    assert fast is not None
    assert slow is not None
    assert (len(fast.positions), len(slow.positions)) == (600, 60)
    sizes = []
    while (chunk := work(dealer, 0)) is not None:
        sizes.append(len(chunk.positions))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 4


def test_a_worker_stays_with_its_model_and_then_helps_where_most_is_left() -> None:
    dealer = ChunkDealer([Pile([1.0] * 4, 2), Pile([1.0] * 100, 2), Pile([1.0] * 50, 2)], chunk_s=60.0)
    for worker in range(3):
        dealer.join(worker)
    assert [dealer.group_for(worker) for worker in range(3)] == [1, 1, 2]
    assert dealer.group_for(0) == 1
    taken = dealer.deal(0)
    assert taken is not None
    assert dealer.refuse(0, 1) == [taken]
    assert dealer.group_for(0) != 1
    assert not dealer.refuses_all(0)
    dealer.refuse(0, 0)
    dealer.refuse(0, 2)
    assert dealer.refuses_all(0)
    assert dealer.group_for(0) is None


@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000))
def test_each_task_is_made_once_although_workers_are_lost(num: int, workers: int, batch: int, seed: int) -> None:
    rng = random.Random(seed)
    dealer = ChunkDealer([Pile([rng.uniform(0.5, 2.0) for _ in range(num)], batch)], chunk_s=10.0)
    alive = list(range(workers))
    held: dict[int, list[Chunk]] = {worker: [] for worker in alive}
    for worker in alive:
        dealer.join(worker)
    made: list[int] = []
    while dealer.num_left or dealer.is_working:
        worker = rng.choice(alive)
        what = rng.random()
        if what < 0.1:  # it dies with part of its chunks made
            for chunk in dealer.leave(worker):
                done = rng.randrange(len(chunk.positions) + 1)
                made += chunk.positions[:done]
                rest = list(chunk.positions[done:])
                dealer.give_back(chunk, rest, rest[:1])
            alive.remove(worker)
            alive.append(new := max(held) + 1)
            held[new] = []
            dealer.join(new)
        elif what < 0.6 and held[worker]:
            chunk = held[worker].pop(0)
            made += chunk.positions
            dealer.finish(worker, chunk.number)
            dealer.note_pace(worker, rng.uniform(0.1, 3.0))
        elif (given_chunk := work(dealer, worker)) is not None:
            held[worker].append(given_chunk)
    assert sorted(made) == list(range(num))
