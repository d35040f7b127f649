"""Ranks agree on a new name for each launch, whatever earlier launches left in the store."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from fluxexp.errors import RankError
from fluxexp.parallel.launch_agreement import agree_on_launch
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
    """Rank 0 of the first attempt invited, rank 1 accepted, and rank 2 never came: the launcher ended them."""
    store = HashStore()
    (first, other) = on_ranks(2, lambda rank: agree_on_launch(store, rank, 3, timeout_s=0.3))
    assert isinstance(first, RankError)
    assert "rank(s) [2] did not start" in str(first)
    assert isinstance(other, RankError)
    names = agree(store, 3)
    assert len(set(names)) == 1


def test_a_rank_that_comes_too_late_is_told_to_start_all_again() -> None:
    """One process of a finished launch is restarted alone. Its name is known, but not its token."""
    store = HashStore()
    agree(store, 2)
    with pytest.raises(RankError, match="rank 1 waited 0 s for rank 0, which has not started, or has started with"):
        agree_on_launch(store, 1, 2, timeout_s=0.3)
