"""The store that all ranks share: small JSON values and atomic counters, without collectives.

This module defines the protocol and does not import torch. `tcp_coordinator.py` implements it over the launcher's
TCPStore. `channel.py` puts typed messages on top of it. An engine with a store of its own implements `Coordinator`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fluxexp.errors import RankError


class Coordinator(Protocol):
    """One session's part of the shared store, as one rank sees it. All methods are thread-safe.

    Every method that uses the store raises `RankError` if the store is lost, which means that the process that keeps
    it has ended.
    """

    @property
    def name(self) -> str:
        """Prefix of the keys of this part of the store."""
        ...

    @property
    def rank(self) -> int:
        """This rank, among the `world_size` ranks that use this part."""
        ...

    @property
    def world_size(self) -> int:
        """Ranks that use this part."""
        ...

    def put(self, key: str, value: Any) -> None:
        """Set `key` to a JSON value of any size that every rank can read."""
        ...

    def get(self, key: str) -> Any | None:
        """The value of `key`; None if no rank has set it. Does not wait."""
        ...

    def get_many(self, keys: Sequence[str]) -> list[Any]:
        """The values of keys or counters that are all set, in one round trip. Only for small values."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to a counter atomically and return its new value. A counter starts at 0."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key` if it is set."""
        ...

    def part(self, name: str, rank: int, world_size: int) -> Coordinator:
        """Return a separate part of the store for some of the ranks. This rank has the number `rank` among them."""
        ...

    def group_store(self) -> Any:
        """A `torch.distributed.Store` with a connection of its own, to make a process group of these ranks."""
        ...


@dataclass
class _Memory:
    """Values of all parts, with the lock that guards them."""

    values: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class LocalCoordinator:
    """A coordinator in the memory of one process: for a single rank, and for ranks that are threads of a test."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, *, name: str = "local", memory: _Memory | None = None
    ) -> None:
        self.name = name
        self.rank = rank
        self.world_size = world_size
        self._memory = memory or _Memory()

    @classmethod
    def group(cls, world_size: int) -> list[LocalCoordinator]:
        """One coordinator for each of `world_size` ranks, over one memory."""
        memory = _Memory()
        return [cls(rank, world_size, memory=memory) for rank in range(world_size)]

    def put(self, key: str, value: Any) -> None:
        """See `Coordinator`."""
        text = json.dumps(value)
        with self._memory.lock:
            self._memory.values[self._full(key)] = text

    def get(self, key: str) -> Any | None:
        """See `Coordinator`."""
        with self._memory.lock:
            text = self._memory.values.get(self._full(key))
        return None if text is None else json.loads(text)

    def get_many(self, keys: Sequence[str]) -> list[Any]:
        """See `Coordinator`."""
        with self._memory.lock:
            texts = [self._memory.values[self._full(key)] for key in keys]
        return [json.loads(text) for text in texts]

    def add(self, key: str, amount: int) -> int:
        """See `Coordinator`."""
        full = self._full(key)
        with self._memory.lock:
            value = int(self._memory.values.get(full, 0)) + amount
            self._memory.values[full] = str(value)
        return value

    def delete(self, key: str) -> None:
        """See `Coordinator`."""
        with self._memory.lock:
            self._memory.values.pop(self._full(key), None)

    def part(self, name: str, rank: int, world_size: int) -> LocalCoordinator:
        """See `Coordinator`."""
        return LocalCoordinator(rank, world_size, name=f"{self.name}/{name}", memory=self._memory)

    def group_store(self) -> Any:
        """Always an error: a process group needs several processes."""
        raise RankError("a process group needs several processes, and this coordinator serves one")

    def _full(self, key: str) -> str:
        return f"{self.name}/{key}"
