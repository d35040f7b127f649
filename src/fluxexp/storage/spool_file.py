"""A file that is written bit by bit on this machine, and then moved into a store as a whole."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fluxexp.storage.atomic import TEMPORARY_PREFIX


class SpoolFile:
    """An open file. One thread appends, others may read what it has appended.

    Args:
        folder: where the file is, with the name of a temporary file. None: a file without a name in the folder for
            temporary files, which ends with its process, even if it is killed.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        self._file: BinaryIO = tempfile.TemporaryFile() if self.path is None else self.path.open("w+b")  # noqa: SIM115
        self._lock = threading.Lock()
        self.size = 0
        self.repeat: Callable[[Callable[[], None]], None] = lambda write: write()
        """Calls a write until it succeeds. `RetryingStore` sets it."""

    def append(self, data: bytes) -> None:
        """Append `data`. If it raises OSError, the file has its earlier size."""
        self.repeat(lambda: self._append(data))

    def _append(self, data: bytes) -> None:
        offset, rest = self.size, memoryview(data)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, offset)
            offset, rest = offset + written, rest[written:]
        self.size = offset

    def read(self, start: int, end: int) -> bytes | None:
        """Bytes `start` to `end`, as far as the file has them; None if the file was closed."""
        with self._lock:  # `close` frees the number of the file, which another file could get
            return None if self._file.closed else os.pread(self._file.fileno(), min(end, self.size) - start, start)

    def sync(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._file.fileno())

    def rewound(self) -> BinaryIO:
        """The file, at its beginning, to read it as a stream."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Close the file, and remove it if it was not moved into a store."""
        with self._lock:
            self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
