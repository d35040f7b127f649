"""The protocol of a place that keeps the files of one run or one sweep.

Everything that reads or writes results goes through it. `LocalStore` keeps them in a directory. A store for object
storage (`ObjectStore`) implements the same protocol; there, several appended records are written together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from fluxexp.storage.spool_file import SpoolFile


class RunStore(Protocol):
    """Bytes by key. A key is a relative POSIX path, for example `images/k.png`.

    A record stream is a key that only `append_record` writes and only `records` reads. A stream has one writer.
    Methods raise OSError when the place cannot be read or written.
    """

    @property
    def address(self) -> str:
        """Full address of the store, for messages."""

    def exists(self, key: str) -> bool:
        """Whether there is such a key."""

    def get(self, key: str) -> bytes | None:
        """Content of `key`, or None if there is no such key."""

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """Bytes `start` to `end` of `key`, as far as it has them, or None if there is no such key."""

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Write `data` atomically and replace earlier content. A reader never sees a part of it.

        `durable=False` allows the loss of the whole file when the machine crashes, never of a part of it.
        """

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write `data` atomically, unless `key` exists. Returns whether it wrote."""

    def new_file(self) -> SpoolFile:
        """A new file on this machine, for `put_file`. `SpoolFile.append` fills it."""

    def put_file(self, key: str, file: SpoolFile) -> None:
        """Move `file` into the store as `key`, durably and atomically, without reading all of it into memory.

        If it raises OSError, the call can be repeated. Afterwards the caller closes the file.
        """

    def append_record(self, stream: str, record: bytes, *, durable: bool = True) -> None:
        """Append `record`, which contains no newline, to `stream`.

        If it raises OSError, the record may be appended again, and readers then see it once. A store may keep records
        in memory for some seconds, so that it writes several at once: `flush` writes them. Readers in the same process
        see them at once. `durable=False` allows that they wait longer, and that a crash of the machine loses them.
        """

    def flush(self, prefix: str = "") -> None:
        """Write the records that wait in memory, of the streams whose keys begin with `prefix`.

        OSError if they cannot be written; then they still wait.
        """

    def records(self, stream: str) -> list[bytes]:
        """All records of `stream` in the order of their appends. Leaves out a record that was written only in part."""

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield the end and the content of each complete record of `stream` that starts at `position` or later.

        Each record starts at the end of the one before it, and the first one at 0. So a later call can continue at the
        last end. Only a part of the stream is in memory at a time.
        """

    def records_at(self, stream: str, positions: Iterable[int]) -> Iterator[bytes]:
        """Yield the records of `stream` that start at `positions`."""

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield the name of each key in the folder `prefix` without the folder, and its size in bytes. In any order.

        The store may look at the folder at the call, or later, while the caller iterates.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Keys and streams in the folder `prefix` (`""`, or ends with a slash), sorted; not those in its subfolders."""

    def modified_ns(self, key: str) -> int:
        """Time of the last write to `key` or stream, in nanoseconds since the epoch."""

    def delete(self, key: str) -> None:
        """Delete `key` or stream, if it exists."""

    def is_empty(self) -> bool:
        """Whether the store contains nothing."""

    def clear(self, last: str) -> None:
        """Delete everything. Deletes `last` last, so that an interrupted `clear` can be repeated."""

    def remove_partial_files(self) -> None:
        """Remove what killed writers left. Call it only while no other process writes."""

    def require_usable(self) -> None:
        """Check that `claim` would succeed, without changing anything.

        Raises:
            StorageError: it would not.
        """

    def claim(self) -> AbstractContextManager[None]:
        """Reserve the store for one session. A claim ends with its process at the latest.

        Raises:
            StorageError: another session holds the store, or the store cannot be created.
        """
