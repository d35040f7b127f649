"""A `Coordinator` over a store of torch.distributed: a TCPStore, which the launcher or rank 0 keeps.

Reads never block. A rank that waits polls, so no deadline of the store can end a run whose load is uneven.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import DistError, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from fluxexp.errors import RankError
from fluxexp.rank_environment import RankEnvironment

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=5)
_CHUNK = 4 << 20
"""Most characters of one value in the TCPStore."""
_CHUNKED = "chunks "
"""Begins the value of a key whose text is in chunks. No JSON text begins with it."""


def connect() -> Store:
    """A new connection to the TCPStore of this launch. Needs several processes."""
    return _tcp_store(RankEnvironment.from_environment(), is_host=False)


def open_store(timeout_s: float) -> Store:
    """The first connection of this process, which waits for its host for `timeout_s`.

    Rank 0 also starts the TCPStore, if the launcher has none.
    """
    environment = RankEnvironment.from_environment()
    is_host = environment.is_main and not environment.has_launcher_store
    store = _tcp_store(environment, timedelta(seconds=timeout_s), is_host=is_host)
    store.set_timeout(_TIMEOUT)
    return store


def _tcp_store(environment: RankEnvironment, timeout: timedelta = _TIMEOUT, *, is_host: bool) -> Store:
    address, port = environment.master_addr, environment.master_port
    if address is None or port is None:
        raise RankError(
            "there is no store to connect to: WORLD_SIZE is 1, but several ranks were started; "
            "start with `torchrun` or `accelerate launch`, which set WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    try:
        return TCPStore(address, port, is_master=is_host, wait_for_workers=False, timeout=timeout)
    except (RuntimeError, DistError) as error:
        what = "start the store that all ranks share" if is_host else "connect to the store that all ranks share"
        raise RankError(
            f"rank {environment.rank} cannot {what} at {address}:{port}: {str(error).splitlines()[0]}\n"
            "    (MASTER_ADDR must name the host of rank 0, and MASTER_PORT a port that is free there)"
        ) from error


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
        """See `Coordinator`. A large value is stored in chunks: a TCPStore refuses values above 8 MiB."""
        text = json.dumps(value)
        if len(text) <= _CHUNK:
            self._try(lambda: self._store.set(key, text))
            return
        # A new name for each value: a reader never sees chunks of two values. JSON is ASCII, so it can be cut anywhere.
        name = f"{key}/{uuid.uuid4().hex}"
        starts = range(0, len(text), _CHUNK)
        for number, start in enumerate(starts):
            self._put_chunk(f"{name}/{number}", text[start : start + _CHUNK])
        self._try(lambda: self._store.set(key, f"{_CHUNKED}{len(starts)} {name}"))

    def _put_chunk(self, key: str, chunk: str) -> None:
        self._try(lambda: self._store.set(key, chunk))

    def get(self, key: str) -> Any | None:
        """See `Coordinator`."""
        text = self._text(key)
        return None if text is None else json.loads("".join(self._text(part) or "" for part in _chunks(text)) or text)

    def _text(self, key: str) -> str | None:
        return self._try(lambda: self._store.get(key).decode() if self._store.check([key]) else None)

    def get_many(self, keys: Sequence[str]) -> list[Any]:
        """See `Coordinator`."""
        return [json.loads(value) for value in self._try(lambda: self._store.multi_get(list(keys)))]

    def add(self, key: str, amount: int) -> int:
        """See `Coordinator`."""
        return int(self._try(lambda: self._store.add(key, amount)))

    def delete(self, key: str) -> None:
        """See `Coordinator`."""
        for part in (key, *_chunks(self._text(key) or "")):
            self._delete(part)

    def _delete(self, key: str) -> None:
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


def _chunks(text: str) -> list[str]:
    """Keys of the chunks that `text` refers to; empty if it is a JSON text itself."""
    if not text.startswith(_CHUNKED):
        return []
    number, name = text.removeprefix(_CHUNKED).split(" ", 1)
    return [f"{name}/{part}" for part in range(int(number))]
