"""A store that waits while the store behind it has a passing trouble. Every run and sweep is used through one."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from fluxexp.storage.patience import Patience
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.spool_file import SpoolFile


class RetryingStore:
    """Implements `RunStore` over `store`, which can be of any kind.

    Writes are repeated for `retry_s` seconds, reads for a few. A repeated append must not leave a part of the first
    one: see `RunStore.append_record`.
    """

    def __init__(self, store: RunStore, retry_s: float, patience: Patience | None = None) -> None:
        self._store = store
        self._patience = patience or Patience(store.address, retry_s)

    @property
    def address(self) -> str:
        """See `RunStore.address`."""
        return self._store.address

    def exists(self, key: str) -> bool:
        """See `RunStore.exists`."""
        return self._patience.reading(key, lambda: self._store.exists(key))

    def get(self, key: str) -> bytes | None:
        """See `RunStore.get`."""
        return self._patience.reading(key, lambda: self._store.get(key))

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """See `RunStore.get_range`."""
        return self._patience.reading(key, lambda: self._store.get_range(key, start, end))

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """See `RunStore.put`."""
        self._patience.writing(key, lambda: self._store.put(key, data, durable=durable))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `RunStore.put_if_absent`."""
        return self._patience.writing(key, lambda: self._store.put_if_absent(key, data))

    def new_file(self) -> SpoolFile:
        """See `RunStore.new_file`."""
        file = self._patience.writing("a new file", self._store.new_file)
        file.repeat = lambda write: self._patience.writing("a new file", write)
        return file

    def put_file(self, key: str, file: SpoolFile) -> None:
        """See `RunStore.put_file`."""
        self._patience.writing(key, lambda: self._store.put_file(key, file))

    def append_record(self, stream: str, record: bytes, *, durable: bool = True) -> None:
        """See `RunStore.append_record`."""
        self._patience.writing(stream, lambda: self._store.append_record(stream, record, durable=durable))

    def flush(self, prefix: str = "") -> None:
        """See `RunStore.flush`."""
        self._patience.writing(prefix, lambda: self._store.flush(prefix))

    def records(self, stream: str) -> list[bytes]:
        """See `RunStore.records`."""
        return self._patience.reading(stream, lambda: self._store.records(stream))

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        """See `RunStore.read_records`. After a trouble it continues behind the last record."""
        rest = position
        try:
            for end, record in self._store.read_records(stream, position):
                rest = end
                yield end, record
        except OSError:  # `reading` raises it again if it does not pass
            yield from self._patience.reading(stream, lambda: [*self._store.read_records(stream, rest)])

    def records_at(self, stream: str, positions: Iterable[int]) -> Iterator[bytes]:
        """See `RunStore.records_at`. After a trouble it continues behind the last record."""
        wanted, done = [*positions], 0
        try:
            for record in self._store.records_at(stream, wanted):
                done += 1
                yield record
        except OSError:
            rest = wanted[done:]
            yield from self._patience.reading(stream, lambda: [*self._store.records_at(stream, rest)])

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `RunStore.sizes`. After a trouble it yields the names that it has yielded once more."""
        try:
            return self._sizes(prefix, self._store.sizes(prefix))
        except OSError:
            return iter(self._patience.reading(prefix, lambda: [*self._store.sizes(prefix)]))

    def _sizes(self, prefix: str, begun: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        try:
            yield from begun
        except OSError:
            yield from self._patience.reading(prefix, lambda: [*self._store.sizes(prefix)])

    def list(self, prefix: str) -> Iterator[str]:
        """See `RunStore.list`."""
        return iter(self._patience.reading(prefix, lambda: [*self._store.list(prefix)]))

    def modified_ns(self, key: str) -> int:
        """See `RunStore.modified_ns`."""
        return self._patience.reading(key, lambda: self._store.modified_ns(key))

    def delete(self, key: str) -> None:
        """See `RunStore.delete`."""
        self._patience.writing(key, lambda: self._store.delete(key))

    def is_empty(self) -> bool:
        """See `RunStore.is_empty`."""
        return self._patience.reading("", self._store.is_empty)

    def clear(self, last: str) -> None:
        """See `RunStore.clear`."""
        self._patience.writing("", lambda: self._store.clear(last))

    def remove_partial_files(self) -> None:
        """See `RunStore.remove_partial_files`."""
        self._patience.writing("", self._store.remove_partial_files)

    def require_usable(self) -> None:
        """See `RunStore.require_usable`."""
        self._patience.writing("", self._store.require_usable)

    @contextmanager
    def claim(self) -> Generator[None]:
        """See `RunStore.claim`."""
        with ExitStack() as stack:
            self._patience.writing("", lambda: stack.enter_context(self._store.claim()))
            yield
