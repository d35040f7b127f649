"""Static shares: contiguous, differing by at most one, as Accelerate's `split_between_processes` gives them."""

from __future__ import annotations

from itertools import pairwise

from accelerate import PartialState

from fluxexp.errors import RankError


def contiguous_shards(length: int, num_ranks: int) -> list[range]:
    """The shares of all ranks in the order of the ranks; together they are `range(length)`."""
    each, extra = divmod(length, num_ranks)
    firsts = [each * rank + min(rank, extra) for rank in range(num_ranks + 1)]
    return [range(first, last) for first, last in pairwise(firsts)]


def static_shard(length: int, num_ranks: int, rank: int) -> range:
    """This rank's part of `range(length)`, by Accelerate; of fewer ranks than there are, by the same rule.

    Raises:
        RankError: Accelerate splits otherwise than `contiguous_shares`, by which ranks know of each other's shares.
    """
    shares = contiguous_shards(length, num_ranks)
    share = shares[rank] if rank < num_ranks else range(0)
    state = PartialState()
    if length and rank < num_ranks == state.num_processes:
        # A plain list: any other sequence would be handed to every rank as a whole.
        with state.split_between_processes(list(range(length))) as own:
            if own != list(share):
                raise RankError(f"rank {rank}: this release of accelerate gives out work in another way than expected")
    return share
