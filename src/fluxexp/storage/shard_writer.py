"""Writes finished images into shards: tars in the layout of webdataset, which any of its readers opens.

Each image is two members: `KEY.png` and `KEY.json`, its record. When a tar is large or old enough, it is put into the
store under a hash of its content, and then its part with the records (`shard_part.py`). So a process that is killed
loses the images of its open shard, and they have no record: they are made again.
"""

from __future__ import annotations

import hashlib
import tarfile
import threading
import time
from collections.abc import Callable

import numpy as np

from fluxexp.records import Record
from fluxexp.storage.result_files import IMAGES, shard_key, shard_part_key
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.shard_index import ImagePlace, ShardIndex
from fluxexp.storage.shard_part import Member, ShardPart, write_part
from fluxexp.storage.spool_file import SpoolFile
from fluxexp.storage.tar_members import END, tar_member

LONGEST_S = 300.0
"""A shard is closed after this time, so that a process that is killed loses no more than the work of five minutes."""


class ShardWriter:
    """Appends to one open shard of `store` at a time. Thread-safe, so that another thread can close the shard.

    Args:
        store: of the run.
        index: learns of each image at once, so that this process can read it before the shard is closed.
        limit_bytes: a tar of at least this size is closed.
        clock: seconds that never decrease.
    """

    def __init__(
        self, store: RunStore, index: ShardIndex, limit_bytes: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._index = index
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._lock = threading.RLock()
        self._shard: _OpenShard | None = None

    def append(self, record: Record, image: bytes) -> None:
        """Append an image and its record. Closes the shard if it is large or old enough.

        OSError if it cannot be written. After a shard that could not be closed, each call tries to close it first.
        """
        with self._lock:
            if self._shard is not None and self._shard.is_ended:
                self.flush()
            if self._shard is None:
                self._shard = _OpenShard(self._store.new_file(), self._clock())
            member = self._shard.append(record, image)
            self._index.open_image(member.name, ImagePlace(self._shard.file, member.offset, member.num_bytes))
            if self._shard.file.size >= self._limit_bytes or self._clock() - self._shard.began_s >= LONGEST_S:
                self.flush()

    def flush(self) -> None:
        """Close the open shard, if there is one: put the tar into the store, and then its part. OSError if it fails."""
        with self._lock:
            if self._shard is None:
                return
            shard, file, members = self._shard.end(), self._shard.file, self._shard.members
            self._store.put_file(shard_key(shard), file)
            self._store.put(shard_part_key(shard), write_part(members, file.size))
            self._index.close_shard(shard, _part_of(members, file.size))
            self._shard = None
            file.close()


class _OpenShard:
    """A tar that is being written."""

    def __init__(self, file: SpoolFile, began_s: float) -> None:
        self.file = file
        self.began_s = began_s
        self.members: list[Member] = []
        self.is_ended = False
        self._hash = hashlib.blake2b(digest_size=16)

    def append(self, record: Record, image: bytes) -> Member:
        """Append an image and its record, both or none."""
        assert record.file is not None
        name, text = record.file.removeprefix(IMAGES), record.to_json()
        content = text.encode(errors="replace")
        offset = self.file.size + tarfile.BLOCKSIZE
        self._write(tar_member(name, image) + tar_member(f"{name.partition('.')[0]}.json", content))
        member = Member(record.key, name, offset, len(image), record.attempt, content.decode())
        self.members.append(member)
        return member

    def end(self) -> str:
        """End the tar. Returns the name of the shard."""
        if not self.is_ended:
            self._write(END)
            self.is_ended = True
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self.file.append(data)
        self._hash.update(data)


def _part_of(members: list[Member], tar_bytes: int) -> ShardPart:
    return ShardPart(
        tar_bytes,
        [member.name for member in members],
        np.array([member.offset for member in members], np.int64),
        np.array([member.num_bytes for member in members], np.int64),
        np.array([member.attempt for member in members], np.int32),
        (),
    )
