"""A store whose images and records may be in shards. Every run is read through one, whatever its layout.

Readers see the images of shards below `images/`, and the records of each shard as a stream below `manifest/`. All other
keys are those of the store behind it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from fluxexp.storage.result_files import IMAGES, MANIFEST, SHARDS, shard_key, shard_part_key
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.shard_index import ImagePlace, ShardIndex
from fluxexp.storage.shard_writer import ShardWriter
from fluxexp.storage.spool_file import SpoolFile

_STREAM = f"{MANIFEST}shard-"
_SUFFIX = ".jsonl"


class ShardedStore:
    """Implements `RunStore` over `store`."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._shards = ShardIndex(store)
        self._writers: list[ShardWriter] = []

    def shard_writer(self, limit_bytes: int) -> ShardWriter:
        """A new writer of shards of about `limit_bytes`."""
        self._writers.append(ShardWriter(self._store, self._shards, limit_bytes))
        return self._writers[-1]

    @property
    def address(self) -> str:
        """See `RunStore.address`."""
        return self._store.address

    def has_shards(self) -> bool:
        """Whether the run has images in shards."""
        return bool(self._shards.shards())

    def exists(self, key: str) -> bool:
        """See `RunStore.exists`."""
        return self._find(key) is not None or self._store.exists(key) or self._find_new(key) is not None

    def get(self, key: str) -> bytes | None:
        """See `RunStore.get`. An image in a shard is newer than a file with its name."""
        place = self._find(key)
        if place is None and (content := self._store.get(key)) is not None:
            return content
        place = place or self._find_new(key)
        return None if place is None else self._read(key, place, 0, place.num_bytes)

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """See `RunStore.get_range`."""
        place = self._find(key)
        if place is None and (content := self._store.get_range(key, start, end)) is not None:
            return content
        place = place or self._find_new(key)
        return None if place is None else self._read(key, place, start, min(end, place.num_bytes))

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """See `RunStore.put`."""
        self._store.put(key, data, durable=durable)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `RunStore.put_if_absent`."""
        return self._store.put_if_absent(key, data)

    def new_file(self) -> SpoolFile:
        """See `RunStore.new_file`."""
        return self._store.new_file()

    def put_file(self, key: str, file: SpoolFile) -> None:
        """See `RunStore.put_file`."""
        self._store.put_file(key, file)

    def append_record(self, stream: str, record: bytes, *, durable: bool = True) -> None:
        """See `RunStore.append_record`."""
        self._store.append_record(stream, record, durable=durable)

    def flush(self, prefix: str = "") -> None:
        """See `RunStore.flush`. Closes the open shards of this process, if `prefix` includes all of the manifest."""
        if MANIFEST.startswith(prefix):
            for writer in self._writers:
                writer.flush()
        self._store.flush(prefix)

    def records(self, stream: str) -> list[bytes]:
        """See `RunStore.records`."""
        shard = _shard_of(stream)
        return self._store.records(stream) if shard is None else list(self._shards.records(shard))

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        """See `RunStore.read_records`. In a shard, a position is the number of a record."""
        shard = _shard_of(stream)
        if shard is None:
            return self._store.read_records(stream, position)
        return enumerate(self._shards.records(shard)[position:], position + 1)

    def records_at(self, stream: str, positions: Iterable[int]) -> Iterator[bytes]:
        """See `RunStore.records_at`."""
        shard = _shard_of(stream)
        return self._store.records_at(stream, positions) if shard is None else self._records_at(shard, positions)

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `RunStore.sizes`."""
        begun = self._store.sizes(prefix)
        return self._image_sizes(begun) if prefix == IMAGES else begun

    def list(self, prefix: str) -> Iterator[str]:
        """See `RunStore.list`. Lists the records of shards, but not their images, which can be millions."""
        if prefix != MANIFEST:
            return self._store.list(prefix)
        return iter(sorted([*self._store.list(prefix), *map(_stream_of, self._shards.shards())]))

    def modified_ns(self, key: str) -> int:
        """See `RunStore.modified_ns`."""
        shard = _shard_of(key)
        return self._store.modified_ns(key if shard is None else shard_part_key(shard))

    def delete(self, key: str) -> None:
        """See `RunStore.delete`. Images and records in shards cannot be deleted one by one."""
        self._store.delete(key)

    def is_empty(self) -> bool:
        """See `RunStore.is_empty`."""
        return self._store.is_empty()

    def clear(self, last: str) -> None:
        """See `RunStore.clear`."""
        self._store.clear(last)
        self._shards.forget()

    def remove_partial_files(self) -> None:
        """See `RunStore.remove_partial_files`. Removes incomplete shards, too."""
        self._store.remove_partial_files()
        self._shards.remove_incomplete()

    def require_usable(self) -> None:
        """See `RunStore.require_usable`."""
        self._store.require_usable()

    def claim(self) -> AbstractContextManager[None]:
        """See `RunStore.claim`."""
        return self._store.claim()

    def _find(self, key: str) -> ImagePlace | None:
        return self._shards.find(key.removeprefix(IMAGES)) if key.startswith(IMAGES) else None

    def _find_new(self, key: str) -> ImagePlace | None:
        """Where an image is that another process may have written by now."""
        return self._find(key) if key.startswith(IMAGES) and self._shards.load() else None

    def _read(self, key: str, place: ImagePlace, start: int, end: int) -> bytes | None:
        """Read a part of an image, with the header before it, which says whether it is this image."""
        shard, offset, _ = place
        header_start = offset - tarfile.BLOCKSIZE
        if isinstance(shard, SpoolFile):
            content = shard.read(offset + start, offset + end)
            return self.get_range(key, start, end) if content is None else content  # None: it was closed just now
        content = self._store.get_range(shard_key(shard), header_start, offset + end)
        if content is None or len(content) < offset + end - header_start:
            return None
        name = key.removeprefix(IMAGES).encode()
        if content[: len(name) + 1] != name + b"\0":
            raise OSError(f"{self.address}/{SHARDS}{shard}.tar is damaged: it has no {key} at {header_start}")
        return content[tarfile.BLOCKSIZE + start :]

    def _image_sizes(self, begun: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        yield from self._shards.sizes()  # first: of two images with one name, the first counts
        yield from begun

    def _records_at(self, shard: str, positions: Iterable[int]) -> Iterator[bytes]:
        records = self._shards.records(shard)
        for position in positions:
            if position >= len(records):
                raise OSError(f"{self.address}/{shard_part_key(shard)} has no record {position}")
            yield records[position]


def _stream_of(shard: str) -> str:
    return f"{_STREAM}{shard}{_SUFFIX}"


def _shard_of(stream: str) -> str | None:
    """Name of the shard whose records a stream has; None for another stream."""
    if stream.startswith(_STREAM) and stream.endswith(_SUFFIX):
        return stream[len(_STREAM) : -len(_SUFFIX)]
    return None
