"""A run store in object storage: S3, Google Cloud Storage, Azure, and everything that speaks S3. Over obstore.

An object is written in one request, so it appears complete or not at all. `object_streams.py` has the record streams,
and `object_lease.py` the claim.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fluxexp.errors import StorageError
from fluxexp.interruption import interruption
from fluxexp.object_errors import NoCredentialsError
from fluxexp.storage.object_bucket import Bucket
from fluxexp.storage.object_lease import Leases
from fluxexp.storage.object_read_ahead import ReadAhead
from fluxexp.storage.object_streams import PART_BYTES, StreamWriters, find_parts, join_parts, read_lines, read_lines_at
from fluxexp.storage.result_files import EVENTS, MANIFEST, SCORES
from fluxexp.storage.session_lock import LOCK
from fluxexp.storage.spool_file import SpoolFile
from fluxexp.terminal import say

_STREAM = ".jsonl"
_JOINED = (MANIFEST, EVENTS, SCORES)


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """A bucket, with what this process writes in it. All stores of one bucket share it."""

    bucket: Bucket
    streams: StreamWriters
    ahead: ReadAhead
    leases: Leases

    @classmethod
    def of(cls, bucket: Bucket) -> BucketAccess:
        """Access to `bucket` by this process."""
        return cls(bucket, StreamWriters(bucket), ReadAhead(bucket, PART_BYTES), Leases(bucket))


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """Implements `RunStore` with the objects of a bucket whose names begin with `prefix/`."""

    access: BucketAccess
    prefix: str
    """Without a slash at its end."""
    address: str

    def exists(self, key: str) -> bool:
        """See `RunStore.exists`."""
        return self.access.bucket.head(self.access_name(key)) is not None

    def get(self, key: str) -> bytes | None:
        """See `RunStore.get`."""
        self._flush_stream(key)
        found = self.access.bucket.get(self.access_name(key))
        return None if found is None else found[0]

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """See `RunStore.get_range`."""
        found = self.access.bucket.get_range(self.access_name(key), start, end)
        return None if found is None else found[0]

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """See `RunStore.put`. It is always durable."""
        del durable
        self.access.bucket.put(self.access_name(key), data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `RunStore.put_if_absent`."""
        return self.access.bucket.create(self.access_name(key), data)

    def new_file(self) -> SpoolFile:
        """See `RunStore.new_file`. It has no name, so that a killed process leaves nothing."""
        return SpoolFile(None)

    def put_file(self, key: str, file: SpoolFile) -> None:
        """See `RunStore.put_file`. An upload in several parts, which appears when it is complete."""
        self.access.bucket.put_stream(self.access_name(key), file.rewound())

    def append_record(self, stream: str, record: bytes, *, durable: bool = True) -> None:
        """See `RunStore.append_record`. The record waits in memory for some seconds at most, or until `flush`."""
        self.access.streams.append(self.access_name(stream), record, is_durable=durable)

    def flush(self, prefix: str = "") -> None:
        """See `RunStore.flush`."""
        self.access.streams.flush(self.access_name(prefix))

    def records(self, stream: str) -> list[bytes]:
        """See `RunStore.records`."""
        return [record for _, record in self.read_records(stream)]

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        """See `RunStore.read_records`. A position is an offset in bytes."""
        self._flush_stream(stream)
        name = self.access_name(stream)
        first = None if self.access.streams.has(name) else self.access.ahead.take(name, position)
        yield from read_lines(self.access.bucket, name, position, first)

    def records_at(self, stream: str, positions: Iterable[int]) -> Iterator[bytes]:
        """See `RunStore.records_at`."""
        self._flush_stream(stream)
        yield from read_lines_at(self.access.bucket, self.access_name(stream), positions)

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `RunStore.sizes`. One request for each thousand objects."""
        folder = self.access_name(prefix)
        for info in self.access.bucket.list(folder.rstrip("/")):
            name = info.name.removeprefix(folder)
            if "/" not in name and name != LOCK:
                yield name, info.size

    def list(self, prefix: str) -> Iterator[str]:
        """See `RunStore.list`. Further parts of streams are in subfolders."""
        self.flush(prefix)
        infos = self.access.bucket.list_folder(self.access_name(prefix).rstrip("/"))
        if prefix:
            self.access.ahead.note([info for info in infos if info.name.endswith(_STREAM)])
        for info in infos:
            key = info.name.removeprefix(f"{self.prefix}/")
            if key != LOCK:
                yield key

    def modified_ns(self, key: str) -> int:
        """See `RunStore.modified_ns`. By the clock of the store; S3 gives whole seconds."""
        self._flush_stream(key)
        info = self.access.bucket.head(self.access_name(key))
        if info is None:
            raise FileNotFoundError(f"{self.address}/{key} does not exist")
        return info.modified_ns

    def delete(self, key: str) -> None:
        """See `RunStore.delete`."""
        name = self.access_name(key)
        if key.endswith(_STREAM):
            self.access.streams.forget(name)
            parts = [part for _, part, _ in find_parts(self.access.bucket, name)]
            self.access.bucket.delete(parts)
        else:
            self.access.bucket.delete([name])

    def is_empty(self) -> bool:
        """See `RunStore.is_empty`. The lease does not count."""
        return all(info.name == self.access_name(LOCK) for info in self.access.bucket.list(self.prefix))

    def clear(self, last: str) -> None:
        """See `RunStore.clear`. The lease stays: the caller holds it."""
        self.access.streams.forget(self.access_name(""))
        kept = {self.access_name(LOCK), self.access_name(last)}
        self.access.bucket.delete(info.name for info in self.access.bucket.list(self.prefix) if info.name not in kept)
        self.access.bucket.delete([self.access_name(last)])

    def remove_partial_files(self) -> None:
        """See `RunStore.remove_partial_files`. There are none: each object is written in one request."""

    def require_usable(self) -> None:
        """See `RunStore.require_usable`. Lists one object and reads the lease, which needs credentials."""
        trouble: Exception
        try:
            next(self.access.bucket.list(self.prefix), None)
            self.access.leases.require_free(self.address, self.access_name(LOCK))
            return
        except NoCredentialsError as error:
            trouble = error
        raise StorageError(  # outside of the handler: missing credentials are not a trouble that passes
            f"{self.address} cannot be used: {trouble}; set the credentials in the environment (docs/storage.md)"
        )

    @contextmanager
    def claim(self) -> Generator[None]:
        """See `RunStore.claim`. At its end, all waiting records are written, and streams become one object each."""
        with self.access.leases.claimed(self.address, self.access_name(LOCK)):
            try:
                yield
            finally:
                self._end_streams()

    def _end_streams(self) -> None:
        try:
            self.flush()
            if interruption.requested is None:
                for folder in _JOINED:
                    join_parts(self.access.bucket, self.access_name(folder).rstrip("/"))
        except OSError as error:
            say(f"fluxexp: {self.address}: the last records could not be written: {error}", urgent=True)
        self.access.streams.forget(self.access_name(""))

    def _flush_stream(self, key: str) -> None:
        if key.endswith(_STREAM):
            self.flush(key)

    def access_name(self, key: str) -> str:
        """Full name of the object `key` in the bucket."""
        if ".." in key.split("/") or key.startswith("/"):
            raise OSError(f"{key} is not a key inside of {self.address}")
        return f"{self.prefix}/{key}"
