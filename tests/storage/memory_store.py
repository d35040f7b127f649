"""A store in memory, to test the protocol. Like object storage, it keeps each appended record as a separate object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import count

from fluxexp.errors import StorageError
from fluxexp.storage.spool_file import SpoolFile


class MemoryStore:
    """Implements `RunStore`."""

    def __init__(self, address: str = "memory://run-0") -> None:
        self._address = address
        self._objects: dict[str, bytes] = {}
        self._parts: defaultdict[str, list[bytes]] = defaultdict(list)
        self._times: dict[str, int] = {}
        self._clock = count()
        self._is_claimed = False

    @property
    def address(self) -> str:
        return self._address

    def exists(self, key: str) -> bool:
        return key in self._objects

    def get(self, key: str) -> bytes | None:
        return self._objects.get(key)

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        content = self.get(key)
        return None if content is None else content[start:end]

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        del durable
        self._objects[key] = bytes(data)
        self._times[key] = next(self._clock)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key in self._objects:
            return False
        self.put(key, data)
        return True

    def new_file(self) -> SpoolFile:
        return SpoolFile(None)

    def put_file(self, key: str, file: SpoolFile) -> None:
        self.put(key, file.rewound().read())

    def append_record(self, stream: str, record: bytes, *, durable: bool = True) -> None:
        del durable
        self._parts[stream].append(bytes(record))
        self._times[stream] = next(self._clock)

    def flush(self, prefix: str = "") -> None:
        pass

    def records(self, stream: str) -> list[bytes]:
        return list(self._parts.get(stream, ()))

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        yield from enumerate(self.records(stream)[position:], position + 1)

    def records_at(self, stream: str, positions: Iterable[int]) -> Iterator[bytes]:
        for position in positions:
            yield self._parts[stream][position]

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        for key in self.list(prefix):
            if key in self._objects:
                yield key[len(prefix) :], len(self._objects[key])

    def list(self, prefix: str) -> Iterator[str]:
        keys = sorted({*self._objects, *self._parts})
        yield from (key for key in keys if key.startswith(prefix) and "/" not in key[len(prefix) :])

    def modified_ns(self, key: str) -> int:
        return self._times[key]

    def delete(self, key: str) -> None:
        self._objects.pop(key, None)
        self._parts.pop(key, None)

    def is_empty(self) -> bool:
        return not self._objects and not self._parts

    def clear(self, last: str) -> None:
        del last
        self._objects.clear()
        self._parts.clear()

    def remove_partial_files(self) -> None:
        pass

    def require_usable(self) -> None:
        with self.claim():
            pass

    @contextmanager
    def claim(self) -> Generator[None]:
        if self._is_claimed:
            raise StorageError(f"{self.address} is in use by another session of the same run; wait until it ends")
        self._is_claimed = True
        try:
            yield
        finally:
            self._is_claimed = False
