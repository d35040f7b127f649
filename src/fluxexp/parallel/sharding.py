"""Static shards: contiguous, with lengths that differ by at most one, as in Accelerate's `split_between_processes`."""

from __future__ import annotations

from itertools import pairwise

from accelerate import PartialState

from fluxexp.errors import RankError


def contiguous_shards(length: int, num_ranks: int) -> list[range]:
    """The shards of all ranks, in rank order. Together they cover `range(length)`."""
    each, extra = divmod(length, num_ranks)
    firsts = [each * rank + min(rank, extra) for rank in range(num_ranks + 1)]
    return [range(first, last) for first, last in pairwise(firsts)]


def static_shard(length: int, num_ranks: int, rank: int) -> range:
    """This rank's shard of `range(length)`, checked against Accelerate if all ranks have a shard.

    Raises:
        RankError: Accelerate splits differently from `contiguous_shards`, by which ranks know the shards of others.
    """
    shards = contiguous_shards(length, num_ranks)
    shard = shards[rank] if rank < num_ranks else range(0)
    state = PartialState()
    if length and rank < num_ranks == state.num_processes:
        # Accelerate splits lists, but gives every rank the complete sequence for other types.
        with state.split_between_processes(list(range(length))) as own:
            if own != list(shard):
                raise RankError(
                    f"rank {rank}: accelerate splits tasks differently than fluxexp expects; install the version of "
                    "accelerate that constraints.txt names"
                )
    return shard
