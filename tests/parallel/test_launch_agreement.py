"""Ranks agree on a new name for each launch, whatever earlier launches left in the store."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

from fluxexp.errors import RankError
from fluxexp.parallel.launch_agreement import agree_on_launch
from tests.program import free_port
from tests.ranks import on_ranks


def agree(store: Any, size: int) -> list[Any]:
    return on_ranks(size, lambda rank: agree_on_launch(store, rank, size, timeout_s=10))


def test_all_ranks_get_the_same_name() -> None:
    names = agree(HashStore(), 4)
    assert len(set(names)) == 1


def test_every_launch_over_one_store_has_a_new_name() -> None:
    store = HashStore()
    names = [agree(store, size) for size in (3, 3, 2, 4, 3)]
    assert all(len(set(launch)) == 1 for launch in names)
    assert len({launch[0] for launch in names}) == 5


def test_ranks_that_ended_while_they_joined_do_not_mislead_later_ones() -> None:
    """Rank 0 of the first attempt invited, rank 1 accepted, and the launcher ended both before rank 2 came."""
    store: Any = HashStore()
    PrefixStore("fluxexp/launch", store).set("name", "old")
    PrefixStore("fluxexp/launch", store).set("old/accept/1", "token")
    names = agree(store, 3)
    assert len(set(names)) == 1
    assert names[0] != "old"


def test_rank_0_starts_without_ranks_that_do_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    store = HashStore()
    names = on_ranks(2, lambda rank: agree_on_launch(store, rank, 4, timeout_s=0.5))
    assert len(set(names)) == 1
    assert "rank(s) [2, 3] did not start in time" in capfd.readouterr().err


def test_a_rank_that_comes_too_late_is_told_to_start_all_again() -> None:
    """One process of a finished launch is restarted alone. Its name is known, but not its token."""
    store = HashStore()
    agree(store, 2)
    with pytest.raises(RankError, match=r"rank 1 waited for rank 0 in vain \(parallelism.join_timeout_s=0.3\)"):
        agree_on_launch(store, 1, 2, timeout_s=0.3)


def test_a_store_that_ends_while_ranks_join_is_an_error_and_not_a_traceback() -> None:
    """The process that keeps it is killed: found by `make soak`."""
    port = free_port()
    keeper = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import time; from torch.distributed import TCPStore\n"
            f"store = TCPStore('localhost', {port}, is_master=True, wait_for_workers=False); time.sleep(60)",
        ]
    )
    store = TCPStore("localhost", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
    killer = threading.Timer(0.3, keeper.kill)
    killer.start()
    with pytest.raises(RankError, match="rank 1 lost the store that all ranks share while it joined them"):
        agree_on_launch(store, 1, 2, timeout_s=30)
    keeper.wait()
