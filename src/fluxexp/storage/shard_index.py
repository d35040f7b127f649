"""Finds images in the shards of a run: a tar with images, and a part that says where each image is (`shard_part.py`).

The part is written after its tar. A tar without a part does not count, nor a part whose tar is missing or has another
size. Parts and tars do not change, so each part is read once. The index keeps 100 bytes for each image, most of them
for its name.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np

from fluxexp.storage.result_files import SHARDS, shard_key, shard_part_key
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.shard_part import ShardPart, read_part
from fluxexp.storage.spool_file import SpoolFile
from fluxexp.terminal import say

_TAR = ".tar"
_PART = ".parquet"
_READERS = 8
_MOST_RECENT = 100_000
"""Images in the dict of new ones. More are moved into the sorted arrays, which take less memory."""


class ImagePlace(NamedTuple):
    """Where an image is."""

    shard: str | SpoolFile
    """Name of the shard, or the file of a shard that this process is writing."""
    offset: int
    num_bytes: int


@dataclass(slots=True)
class _Rows:
    """Columns with one row for each image of the loaded parts."""

    hashes: array[int] = field(default_factory=lambda: array("q"))
    shards: array[int] = field(default_factory=lambda: array("i"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    attempts: array[int] = field(default_factory=lambda: array("i"))


class ShardIndex:
    """The shards in `store`. Thread-safe. Methods raise OSError as `RunStore` does, and StorageError without pyarrow.

    Of several images with the same name, that of the latest attempt counts; of equal attempts, the one read last.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._lock = threading.RLock()
        self.forget()

    def forget(self) -> None:
        """Forget all shards: the store was cleared."""
        with self._lock:
            self._order: list[str] = []
            self._shards: list[str] = []
            self._names: list[bytes] = []
            self._sizes: dict[str, int] = {}
            self._loaded: set[str] = set()
            self._has_loaded = False
            self._rows = _Rows()
            self._sorted_hashes = np.zeros(0, np.int64)
            self._sorted_rows = np.zeros(0, np.int64)
            self._recent: dict[int, int] = {}
            self._open: dict[str, ImagePlace] = {}
            self._ahead: dict[str, Future[ShardPart | None]] = {}
            self._last: tuple[str, Sequence[bytes]] = ("", ())

    def shards(self) -> list[str]:
        """Names of the shards that are complete now, sorted."""
        with self._lock:
            self._sizes = dict(self._store.sizes(SHARDS))
            self._order = sorted(name.removesuffix(_PART) for name in self._sizes if name.endswith(_PART))
            return self._order

    def records(self, shard: str) -> Sequence[bytes]:
        """The records of a shard. A damaged part has none: its images are made again."""
        with self._lock:
            if self._last[0] != shard:
                part = self._part(shard)
                self._add(shard, part)
                self._last = shard, () if part is None else part.records
            return self._last[1]

    def find(self, name: str) -> ImagePlace | None:
        """Where the image `name` is, as far as this process has read the shards. The first call reads them."""
        with self._lock:
            if not self._has_loaded:
                self.load()
            return self._open.get(name) or self._look_up(name)

    def load(self) -> bool:
        """Read the parts of shards that were written since the last call. Returns whether there were any."""
        with self._lock:
            new = [shard for shard in self.shards() if shard not in self._loaded]
            self._has_loaded = True
            for shard in new:
                self._add(shard, self._part(shard))
            return bool(new)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the name and size of each image in a complete shard that counts."""
        with self._lock:
            self.load()
            num_shards = len(self._shards)
        row = 0
        for number in range(num_shards):
            with self._lock:
                names = self._names[number].decode().split("\n")
                found = [
                    (name, self._rows.sizes[place])
                    for place, name in enumerate(names, row)
                    if self._row_of(name) == place
                ]
            row += len(names)
            yield from found

    def open_image(self, name: str, place: ImagePlace) -> None:
        """Add an image of a shard that this process is writing."""
        with self._lock:
            self._open[name] = place

    def close_shard(self, shard: str, part: ShardPart) -> None:
        """Replace the images of an open shard by those of the complete `shard`."""
        with self._lock:
            self._sizes[f"{shard}{_TAR}"] = part.tar_bytes
            self._add(shard, part)
            for name in part.names:
                self._open.pop(name, None)

    def remove_incomplete(self) -> None:
        """Delete tars without a part, which killed processes left. No process may write shards."""
        complete = set(self.shards())
        for name in self._sizes:
            if name.endswith(_TAR) and name.removesuffix(_TAR) not in complete:
                self._store.delete(f"{SHARDS}{name}")

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_READERS, thread_name_prefix="shards")

    def _part(self, shard: str) -> ShardPart | None:
        """The part of a shard. Those that follow it are read meanwhile: object storage takes long for each request."""
        part = self._ahead.pop(shard, None)
        place = bisect_right(self._order, shard)
        following = (name for name in islice(self._order, place, place + _READERS) if name not in self._loaded)
        for name in following:
            if name not in self._ahead:
                self._ahead[name] = self._pool.submit(self._read, name)
        return self._read(shard) if part is None else part.result()

    def _read(self, shard: str) -> ShardPart | None:
        content = self._store.get(shard_part_key(shard))
        if content is None:
            return None
        try:
            return read_part(content)
        except ValueError as error:
            key = f"{self._store.address}/{shard_part_key(shard)}"
            say(f"fluxexp: {key} is damaged ({error}), so the images of this shard count as not made", urgent=True)
            return None

    def _add(self, shard: str, part: ShardPart | None) -> None:
        if shard in self._loaded:
            return
        self._loaded.add(shard)
        if part is None or not part.names:
            return
        tar = f"{shard}{_TAR}"
        if tar not in self._sizes:  # both can have been written while the folder was listed
            self._sizes = dict(self._store.sizes(SHARDS))
        if self._sizes.get(tar) != part.tar_bytes:
            key = f"{self._store.address}/{shard_key(shard)}"
            say(f"fluxexp: {key} is missing or has another size, so its images count as not made", urgent=True)
            return
        first, rows = len(self._rows.hashes), self._rows
        hashes = list(map(hash, part.names))
        rows.hashes.extend(hashes)
        rows.shards.extend([len(self._shards)] * len(hashes))
        rows.offsets.extend(part.offsets.tolist())
        rows.sizes.extend(part.sizes.tolist())
        rows.attempts.extend(part.attempts.tolist())
        self._shards.append(shard)
        self._names.append("\n".join(part.names).encode())
        for row, value in enumerate(hashes, first):
            known = self._recent.get(value)
            if known is None or rows.attempts[known] <= rows.attempts[row]:
                self._recent[value] = row
        if len(self._recent) > max(_MOST_RECENT, len(self._sorted_hashes) // 4):
            self._sort()

    def _sort(self) -> None:
        """Sort all rows by the hashes of their names, without those that do not count."""
        hashes, attempts = np.array(self._rows.hashes), np.array(self._rows.attempts)
        order = np.lexsort((attempts, hashes))  # stable: of equal attempts, the later row is last
        is_last = np.append(hashes[order][1:] != hashes[order][:-1], True)
        self._sorted_rows = order[is_last]
        self._sorted_hashes = hashes[self._sorted_rows]
        self._recent = {}

    def _row_of(self, name: str) -> int | None:
        value = hash(name)
        recent = self._recent.get(value)
        place = int(np.searchsorted(self._sorted_hashes, value))
        if place == len(self._sorted_hashes) or self._sorted_hashes[place] != value:
            return recent
        row = int(self._sorted_rows[place])
        attempts = self._rows.attempts
        return row if recent is None or attempts[recent] < attempts[row] else recent

    def _look_up(self, name: str) -> ImagePlace | None:
        row = self._row_of(name)
        if row is None:
            return None
        rows = self._rows
        return ImagePlace(self._shards[rows.shards[row]], rows.offsets[row], rows.sizes[row])
