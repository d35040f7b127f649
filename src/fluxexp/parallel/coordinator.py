"""Where ranks meet: a key-value store, without collectives and without a deadline that an uneven load could hit.

Every rank reads and writes small JSON values under one run's own prefix. Waiting is polling: a rank may take hours
longer than another, and a rank that dies is noticed by the launcher, which ends the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)

from fluxexp.errors import RankError
from fluxexp.rank_environment import RankEnvironment

_POLL_S = 0.02
_CONNECT_TIMEOUT = timedelta(minutes=5)


def connect(world_size: int) -> Store:
    """A store that all ranks share: the launcher's own for several processes, a local one for a single process."""
    if world_size == 1:
        return HashStore()
    environment = RankEnvironment.from_environment()
    assert environment.master_addr is not None
    assert environment.master_port is not None
    return TCPStore(
        environment.master_addr,
        environment.master_port,
        is_master=False,
        wait_for_workers=False,
        timeout=_CONNECT_TIMEOUT,
    )


class Coordinator:
    """One run's part of the store, as rank `rank` of `world_size` sees it. Thread-safe as the store is."""

    def __init__(self, store: Store, name: str, rank: int, world_size: int) -> None:
        self._store = PrefixStore(f"fluxexp/{name}", store)
        self.name = name
        self.rank = rank
        self.world_size = world_size

    def part(self, name: str, rank: int, world_size: int) -> Coordinator:
        """A place of its own for some of the ranks, by which this one is called `rank`."""
        return Coordinator(self._store, name, rank, world_size)

    def publish(self, key: str, value: Any) -> None:
        """Set `key` to a JSON-able value, for every rank to read."""
        self._store.set(key, json.dumps(value))

    def read(self, key: str) -> Any | None:
        """The value of `key`, None when nobody published it yet.

        Raises:
            RankError: the store is gone, which means that the rank or launcher that kept it is.
        """
        try:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None
        except (RuntimeError, DistError) as error:
            raise self._lost(error) from error

    def wait(self, key: str) -> Any:
        """The value of `key`, as soon as somebody published it; for ever, if need be."""
        while (value := self.read(key)) is None:
            time.sleep(_POLL_S)
        return value

    def add(self, key: str, amount: int) -> int:
        """Add to the counter `key`, atomically, and return its new value; one that nobody has touched is 0."""
        try:
            return int(self._store.add(key, amount))
        except (RuntimeError, DistError) as error:
            raise self._lost(error) from error

    def forget(self, key: str) -> None:
        """Take back what was published, if it was."""
        try:
            self._store.delete_key(key)
        except (RuntimeError, DistError) as error:
            raise self._lost(error) from error

    def read_many(self, keys: Sequence[str]) -> list[Any]:
        """The values of keys that have all been published, or of counters, in one round trip."""
        try:
            return [json.loads(value) for value in self._store.multi_get(list(keys))]
        except (RuntimeError, DistError) as error:
            raise self._lost(error) from error

    def publish_own(self, key: str, value: Any) -> None:
        """Publish this rank's `key`."""
        self.publish(f"{key}/{self.rank}", value)

    def read_all(self, key: str) -> dict[int, Any]:
        """`key` of every rank that published its own, by rank."""
        values = {rank: self.read(f"{key}/{rank}") for rank in range(self.world_size)}
        return {rank: value for rank, value in values.items() if value is not None}

    def wait_all(self, key: str) -> dict[int, Any]:
        """`key` of every rank, when all of them published it."""
        return {rank: self.wait(f"{key}/{rank}") for rank in range(self.world_size)}

    def _lost(self, error: Exception) -> RankError:
        return RankError(f"rank {self.rank} lost the other ranks: {error}")
