"""Reads the streams of a folder ahead, several at a time: a run of a thousand ranks has thousands of them.

Whoever reads streams lists their folder first. The list has their sizes, so a stream that did not grow since it was
read needs no request, and the streams that follow the one that is read are fetched meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice

from fluxexp.storage.object_bucket import Bucket, ObjectInfo

_THREADS = 16
_STREAMS = 32
"""How many streams are fetched ahead: their first bytes are in memory."""
_VALID_S = 20.0
"""An older list is not used, because other processes may have written since."""

Start = tuple[bytes, int] | None
"""The first bytes of a stream that were asked for, and the size of its first part; None if there is no stream."""


class ReadAhead:
    """What the last list of each folder says of its streams. Each entry is used once. Thread-safe."""

    def __init__(self, bucket: Bucket, num_bytes: int) -> None:
        self._bucket = bucket
        self._num_bytes = num_bytes
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._fetched: dict[str, Future[Start]] = {}
        self._listed_s = 0.0

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="read-ahead")

    def note(self, streams: Sequence[ObjectInfo]) -> None:
        """Note the streams of a folder that was just listed. Earlier lists are forgotten."""
        with self._lock:
            self._sizes = {info.name: info.size for info in streams}
            self._fetched = {}
            self._listed_s = time.monotonic()

    def take(self, name: str, position: int) -> Start:
        """What the stream `name` has from `position` on; None if it must be asked for.

        Raises:
            OSError: it cannot be read.
        """
        with self._lock:
            size = self._sizes.pop(name, None)
            future = self._fetched.pop(name, None)
            if size is None or time.monotonic() > self._listed_s + _VALID_S:
                return None
            if position >= size:
                return b"", size
            if position:
                return None
            future = future or self._fetch(name)
            for following in islice(self._sizes, _STREAMS):
                if following not in self._fetched and self._sizes[following]:
                    self._fetched[following] = self._fetch(following)
        return future.result()

    def _fetch(self, name: str) -> Future[Start]:
        return self._pool.submit(self._bucket.get_range, name, 0, self._num_bytes)
