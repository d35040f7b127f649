"""Ranks as threads of one process, over one store. gloo supports this, so tests of collectives need no launcher."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.tcp_coordinator import TCPStoreCoordinator

T = TypeVar("T")
CPU = torch.device("cpu")


def on_ranks(size: int, work: Callable[[int], T]) -> list[T | Exception]:
    """Run `work` on each rank. Returns its result or its error, by rank."""

    def one(rank: int) -> T | Exception:
        torch.set_num_threads(1)  # a new thread has its own setting
        try:
            return work(rank)
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size), timeout=60))


def replicas(size: int) -> list[Replica]:
    """One replica of `size` ranks, as seen by each rank."""
    store: Any = HashStore()
    collectives = PrefixStore("links", store)
    return [
        Replica(TCPStoreCoordinator(store, "0", rank, size), Collectives(collectives, rank, size, CPU), 0)
        for rank in range(size)
    ]


def linked(size: int, work: Callable[[Collectives], T]) -> list[T]:
    """Run `work` on each rank, with an open process group. Returns the results, or raises the first error."""
    ends = [replica.collectives for replica in replicas(size)]

    def one(rank: int) -> T:
        ends[rank].open()
        return work(ends[rank])

    results = on_ranks(size, one)
    for end in ends:
        end.close()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results  # type: ignore[return-value]
