"""A `Coordinator` over a store of torch.distributed: the launcher's TCPStore.

Reads never block. A rank that waits polls, so no deadline of the store can end a run whose load is uneven. If a rank
dies, the launcher ends the other ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from fluxexp.errors import RankError
from fluxexp.rank_environment import RankEnvironment

T = TypeVar("T")
_CONNECT_TIMEOUT = timedelta(minutes=5)


def connect() -> Store:
    """A new connection to the launcher's TCPStore. Needs several processes."""
    environment = RankEnvironment.from_environment()
    if environment.master_addr is None or environment.master_port is None:
        raise RankError(
            "there is no store to connect to: WORLD_SIZE is 1, but several ranks were started; "
            "start with `torchrun` or `accelerate launch`, which set WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    return TCPStore(
        environment.master_addr,
        environment.master_port,
        is_master=False,
        wait_for_workers=False,
        timeout=_CONNECT_TIMEOUT,
    )


class TCPStoreCoordinator:
    """See `Coordinator`.

    Args:
        store: shared by all ranks.
        name: prefix of all keys.
        rank: of this process.
        world_size: ranks that use this part of the store.
        open_connection: makes another connection to the same store, for `group_store`.
    """

    def __init__(
        self, store: Store, name: str, rank: int, world_size: int, open_connection: Callable[[], Store] = connect
    ) -> None:
        self._root = store
        self._store = PrefixStore(f"fluxexp/{name}", store)
        self._open_connection = open_connection
        self.name = name
        self.rank = rank
        self.world_size = world_size

    def put(self, key: str, value: Any) -> None:
        """See `Coordinator`."""
        text = json.dumps(value)
        self._try(lambda: self._store.set(key, text))

    def get(self, key: str) -> Any | None:
        """See `Coordinator`."""
        return self._try(lambda: json.loads(self._store.get(key)) if self._store.check([key]) else None)

    def get_many(self, keys: Sequence[str]) -> list[Any]:
        """See `Coordinator`."""
        return [json.loads(value) for value in self._try(lambda: self._store.multi_get(list(keys)))]

    def add(self, key: str, amount: int) -> int:
        """See `Coordinator`."""
        return int(self._try(lambda: self._store.add(key, amount)))

    def delete(self, key: str) -> None:
        """See `Coordinator`."""
        self._try(lambda: self._store.delete_key(key))

    def part(self, name: str, rank: int, world_size: int) -> TCPStoreCoordinator:
        """See `Coordinator`."""
        return TCPStoreCoordinator(self._root, f"{self.name}/{name}", rank, world_size, self._open_connection)

    def group_store(self) -> Store:
        """See `Coordinator`. A process group blocks on its connection while other threads use this coordinator's."""
        return PrefixStore(f"fluxexp/{self.name}/group", self._open_connection())

    def _try(self, use: Callable[[], T]) -> T:
        try:
            return use()
        except (RuntimeError, DistError) as error:
            raise RankError(
                f"rank {self.rank} lost the store that all ranks share: {error}\n"
                "    (the process that keeps it may have ended; run the same command again to continue)"
            ) from error
