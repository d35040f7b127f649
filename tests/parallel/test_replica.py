"""Replicas of ranks that are threads: a batch fails on all ranks or on none, and no rank waits forever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from fluxexp.errors import PeerError, RankError
from fluxexp.parallel import replica as replica_module
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.topology import is_out_of_memory
from tests.ranks import on_ranks, replicas


def nothing() -> None:
    """Nothing to drop after a failed batch."""


def summed(replica: Replica) -> float:
    """A collective over all ranks."""
    tensor = torch.full((1,), float(replica.collectives.rank + 1))
    return float(replica.collectives.all_gather(tensor).sum())


def batch(replica: Replica, work: Callable[[], float], text: str = "work") -> float:
    """Run one batch that the leader announces."""
    if replica.is_leader:
        replica.announce(text)
    else:
        assert replica.next() == text
    with replica.together(nothing):
        return work()


def loaded(replica: Replica) -> Replica:
    with replica.loading():
        pass
    return replica


def test_followers_receive_every_batch_and_the_end() -> None:
    members = replicas(3)

    def one(rank: int) -> list[float]:
        replica = loaded(members[rank])
        results = [batch(replica, lambda: summed(replica), f"number {number}") for number in range(3)]
        if replica.is_leader:
            replica.leave()
            return results
        assert replica.next() is None
        replica.leave()
        return results

    assert on_ranks(3, one) == [[6.0] * 3] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_a_batch_that_fails_on_one_rank_fails_on_all_and_the_next_one_works(failing: int) -> None:
    """The other ranks wait in a collective that the failing rank never enters."""
    members, forgotten = replicas(3), []

    def one(rank: int) -> float:
        replica = loaded(members[rank])

        def forget() -> None:
            forgotten.append(rank)

        def work() -> float:
            if rank == failing:
                raise RuntimeError("CUDA out of memory. Tried to allocate a lot")
            return summed(replica)

        expected = RuntimeError if rank == failing else PeerError
        for _ in range(2):
            if replica.is_leader:
                replica.announce("work")
            else:
                replica.next()
            with pytest.raises(expected, match="out of memory") as raised, replica.together(forget):
                work()
            assert is_out_of_memory(raised.value), "a smaller batch may succeed"
            assert rank == failing or f"rank {failing} of the same replica" in str(raised.value)
        result = batch(replica, lambda: summed(replica))
        replica.leave()
        return result

    assert on_ranks(3, one) == [6.0] * 3
    assert len(forgotten) == 2 * 3


def test_a_rank_that_cannot_load_is_named_in_the_errors_of_others() -> None:
    members = replicas(2)

    def one(rank: int) -> None:
        with members[rank].loading():
            if rank == 1:
                raise ValueError("no such file")

    leader, follower = on_ranks(2, one)
    assert isinstance(follower, ValueError)
    assert isinstance(leader, RankError)
    assert "rank 1 of the same replica failed to load: ValueError: no such file" in str(leader)


def test_a_lost_rank_ends_its_replica() -> None:
    members = replicas(3)

    def one(rank: int) -> float:
        replica = loaded(members[rank])

        def work() -> float:
            if rank == 2:
                raise torch.AcceleratorError("an illegal memory access was encountered")
            return summed(replica)

        try:
            return batch(replica, work)
        finally:
            replica.leave()

    first, second, lost = on_ranks(3, one)
    assert isinstance(lost, torch.AcceleratorError)
    for error in (first, second):
        assert isinstance(error, RankError)
        assert "rank 2 of the same replica: AcceleratorError" in str(error)


def test_a_silent_rank_is_an_error_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if its process was killed: its process group is gone, and it publishes no outcome."""
    monkeypatch.setattr(replica_module, "_PATIENCE_AFTER_FAILURE_S", 0.3)
    members = replicas(2)

    def one(rank: int) -> float:
        replica = loaded(members[rank])
        if rank == 1:
            replica.collectives.close()
            return 0.0
        return batch(replica, lambda: summed(replica))

    start_s = time.monotonic()
    leader, _ = on_ranks(2, one)
    members[0].leave()
    assert isinstance(leader, RankError)
    assert "no message from rank(s) [1] of the same replica" in str(leader)
    assert time.monotonic() - start_s < 30


def test_followers_end_when_the_leader_fails_between_batches() -> None:
    members, waiting = replicas(2), threading.Event()

    def one(rank: int) -> None:
        replica = loaded(members[rank])
        if replica.is_leader:
            assert waiting.wait(10)
            replica.break_off()
            replica.leave()
            return
        replica.next(waiting.set)

    leader, follower = on_ranks(2, one)
    members[1].leave()
    assert leader is None
    assert isinstance(follower, RankError)
    assert "rank 0, which leads this replica, stopped: failed" in str(follower)
