from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.errors import RankError
from fluxexp.parallel import sharding
from fluxexp.parallel.sharding import contiguous_shards, static_shard


@given(st.integers(0, 500), st.integers(1, 70))
def test_shards_are_contiguous_and_even(length: int, num_ranks: int) -> None:
    shares = contiguous_shards(length, num_ranks)
    assert list(chain(*shares)) == list(range(length))
    assert len(shares) == num_ranks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_has_the_whole_range() -> None:
    assert static_shard(3, 1, 0) == range(3)
    assert static_shard(0, 1, 0) == range(0)


def test_an_unused_rank_has_an_empty_shard() -> None:
    assert static_shard(3, 1, 1) == range(0)


def test_a_different_split_in_accelerate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "contiguous_shards", lambda length, num_ranks: [range(1, length)])
    with pytest.raises(RankError, match="accelerate splits tasks differently"):
        static_shard(3, 1, 0)
