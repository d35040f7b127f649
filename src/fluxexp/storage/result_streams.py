"""Where a process writes its images and records: one object for each image, or shards (`output.shards`)."""

from __future__ import annotations

from typing import Protocol

from fluxexp.records import Record
from fluxexp.storage.manifest import ManifestWriter
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.shard_writer import ShardWriter


class ResultStream(Protocol):
    """Images and records of one run by one process. Not thread-safe. Methods raise OSError if they cannot write."""

    def write_image(self, key: str, data: bytes) -> None:
        """Write the image file `key`. Its record must come next."""

    def append(self, record: Record) -> None:
        """Append a record. If it names an image, this is the one that was written last."""

    def flush(self) -> None:
        """Write what waits in memory or in an open shard. Until then, other processes may not see it."""


class SingleImages:
    """Implements `ResultStream` with one object for each image."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._manifest = ManifestWriter(store)

    def write_image(self, key: str, data: bytes) -> None:
        """See `ResultStream.write_image`."""
        self._store.put(key, data)

    def append(self, record: Record) -> None:
        """See `ResultStream.append`."""
        self._manifest.append(record)

    def flush(self) -> None:
        """See `ResultStream.flush`."""
        self._manifest.flush()


class ShardedImages:
    """Implements `ResultStream` with shards. Records without an image go into the manifest."""

    def __init__(self, store: RunStore, shards: ShardWriter) -> None:
        self._shards = shards
        self._manifest = ManifestWriter(store)
        self._image = ("", b"")

    def write_image(self, key: str, data: bytes) -> None:
        """See `ResultStream.write_image`. The image waits for its record."""
        self._image = (key, data)

    def append(self, record: Record) -> None:
        """See `ResultStream.append`."""
        if record.file is None:
            self._manifest.append(record)
            return
        (key, data), self._image = self._image, ("", b"")
        assert key == record.file
        self._shards.append(record, data)

    def flush(self) -> None:
        """See `ResultStream.flush`."""
        self._shards.flush()
        self._manifest.flush()
