"""Record streams in an object store, which has no append: each stream is one object, or an object and further parts.

A writer keeps the records of the current part in memory and writes the whole part again when records were added: when
someone asks for it (`flush`), when many wait, or after some seconds. A part that is full is never written again, and
the next one begins. The first part has the name of the stream, `manifest/S.jsonl`; the others are
`manifest/S.jsonl.parts/OFFSET`, where OFFSET is the number of bytes before them. So a short stream is an ordinary file,
and `join_parts` makes one of a long stream. Positions in a stream do not depend on its parts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fluxexp.storage.object_bucket import Bucket

PART_BYTES = 1 << 20
"""A part of at least this size is full. A first part that is shorter has no successor, so it is not looked for."""
LONGEST_JOINED = 64 << 20
"""Longer streams stay in parts, because rank 0 would have to copy them."""
_PARTS = ".parts/"
_FLUSH_BYTES = 256 << 10
_DURABLE_S = 5.0
"""How long a durable record may wait. A process that is killed loses no more than the records of this time."""
_OTHERS_S = 30.0
_READ_BYTES = 8 << 20
_FIRST_WINDOW = 64 << 10
_NEXT_WINDOWS = 1 << 20


@dataclass(slots=True)
class StreamWriter:
    """The end of one stream, which only this process writes. Thread-safe."""

    bucket: Bucket
    name: str
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _offset: int = 0
    """Where the current part begins."""
    _part: bytearray = field(default_factory=bytearray)
    _num_written: int = -1
    """Bytes of the current part that are in the store; -1 before the store was asked what the stream contains."""
    _due_s: float = float("inf")
    """When the records that wait must be written, by the monotonic clock."""

    def append(self, record: bytes, *, is_durable: bool) -> None:
        """Add a record. If OSError is raised, it is not added."""
        with self._lock:
            self._find_end()
            end, due_s = len(self._part), self._due_s
            self._part += record + b"\n"
            self._due_s = min(due_s, time.monotonic() + (_DURABLE_S if is_durable else _OTHERS_S))
            if len(self._part) - self._num_written >= _FLUSH_BYTES:
                try:
                    self.flush()
                except OSError:
                    del self._part[end:]
                    self._due_s = due_s
                    raise

    def flush(self) -> None:
        """Write the records that wait. OSError if they cannot be written: they wait on."""
        with self._lock:
            if self._num_written in (-1, len(self._part)):
                return
            self.bucket.put(part_name(self.name, self._offset), bytes(self._part))
            self._num_written = len(self._part)
            self._due_s = float("inf")
            if self._num_written >= PART_BYTES:
                self._offset += self._num_written
                self._part.clear()
                self._num_written = 0

    def is_due(self, now_s: float) -> bool:
        """Whether records have waited for long enough."""
        return now_s >= self._due_s

    def _find_end(self) -> None:
        """Continue a stream that an earlier session began."""
        if self._num_written >= 0:
            return
        first = self.bucket.get_range(self.name, 0, PART_BYTES)
        content, size = first or (b"", 0)
        if first is not None and size >= PART_BYTES:
            parts = find_parts(self.bucket, self.name, size)
            self._offset = max(offset + num for offset, _, num in parts)
        else:
            self._part += content
        self._num_written = len(self._part)


class StreamWriters:
    """The streams that this process writes in one bucket. A thread writes what has waited for long enough."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._lock = threading.Lock()
        self._writers: dict[str, StreamWriter] = {}
        self._thread: threading.Thread | None = None

    def append(self, name: str, record: bytes, *, is_durable: bool) -> None:
        """Append a record to the stream `name`. See `StreamWriter.append`."""
        with self._lock:
            writer = self._writers.get(name) or self._writers.setdefault(name, StreamWriter(self._bucket, name))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="record-streams", daemon=True)
                self._thread.start()
        writer.append(record, is_durable=is_durable)

    def flush(self, prefix: str) -> None:
        """Write what waits in the streams whose names begin with `prefix`. OSError if one cannot be written."""
        for writer in self._below(prefix):
            writer.flush()

    def forget(self, prefix: str) -> None:
        """Forget the streams whose names begin with `prefix`, and what waits in them."""
        with self._lock:
            for name in [name for name in self._writers if name.startswith(prefix)]:
                del self._writers[name]

    def has(self, name: str) -> bool:
        """Whether this process writes the stream `name`."""
        with self._lock:
            return name in self._writers

    def _below(self, prefix: str) -> list[StreamWriter]:
        with self._lock:
            if prefix in self._writers:
                return [self._writers[prefix]]
            return [writer for name, writer in self._writers.items() if name.startswith(prefix)]

    def _run(self) -> None:
        while True:
            time.sleep(1.0)
            now_s = time.monotonic()
            for writer in self._below(""):
                if writer.is_due(now_s):
                    try:
                        writer.flush()
                    except OSError:
                        continue  # the records wait on, and `flush` of the store raises it


def part_name(stream: str, offset: int) -> str:
    """Name of the part of `stream` that begins at `offset`."""
    return stream if offset == 0 else f"{stream}{_PARTS}{offset:020d}"


def find_parts(bucket: Bucket, stream: str, first_size: int | None = None) -> list[tuple[int, str, int]]:
    """Offset, name and size of each part of `stream`, in order; none if it has no first part."""
    if first_size is None:
        info = bucket.head(stream)
        if info is None:
            return []
        first_size = info.size
    parts = [(0, stream, first_size)]
    if first_size >= PART_BYTES:
        for info in bucket.list(f"{stream}{_PARTS}".rstrip("/")):
            offset = info.name.rpartition("/")[2]
            if offset.isdecimal():
                parts.append((int(offset), info.name, info.size))
    return sorted(parts)


def read_from(
    bucket: Bucket, stream: str, position: int, window: int = _READ_BYTES, first: tuple[bytes, int] | None = None
) -> Iterator[bytes]:
    """Yield the bytes of `stream` from `position` on, `window` at a time. `first` are the first of them, if known.

    Parts can overlap, if a process died while it joined them. Then they agree.
    """
    first = first or bucket.get_range(stream, position, position + window)
    if first is None:
        return
    data, size = first
    while data:
        yield data
        position += len(data)
        if position >= size:
            break
        data, size = bucket.get_range(stream, position, position + window) or (b"", 0)
    if position < PART_BYTES:
        return
    for offset, name, size in find_parts(bucket, stream, PART_BYTES)[1:]:
        while offset <= position < offset + size:
            start = position - offset
            data, _ = bucket.get_range(name, start, min(start + window, size)) or (b"", 0)
            if not data:
                break
            yield data
            position += len(data)


def read_lines(
    bucket: Bucket, stream: str, position: int, first: tuple[bytes, int] | None
) -> Iterator[tuple[int, bytes]]:
    """Yield the end and the content of each complete line of `stream` that starts at `position` or later.

    `first` are the bytes at `position`, and the size of the first part, if they are known.
    """
    rest = b""
    for data in read_from(bucket, stream, position, first=first):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            position += len(line) + 1
            yield position, line


def read_lines_at(bucket: Bucket, stream: str, positions: Iterable[int]) -> Iterator[bytes]:
    """Yield the lines of `stream` that start at `positions`. Lines that follow each other are read together.

    Raises:
        OSError: there is no complete line at a position.
    """
    start, data, num_windows = 0, b"", 0
    for position in positions:
        end = data.find(b"\n", position - start) if start <= position < start + len(data) else -1
        if end < 0:
            start, data, num_windows = position, b"", num_windows + 1
            for window in read_from(bucket, stream, position, _FIRST_WINDOW if num_windows == 1 else _NEXT_WINDOWS):
                data += window
                if b"\n" in window:
                    break
            end = data.find(b"\n")
            if end < 0:
                raise OSError(f"{stream} has no complete line at {position}")
        yield data[position - start : end]


def join_parts(bucket: Bucket, folder: str) -> None:
    """Make one object of each stream in `folder` that has several parts. The bytes of a stream stay the same.

    A process that dies in between leaves both, and one that still writes the stream does no harm: a later part is read
    after the joined object.
    """
    streams: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for info in bucket.list(folder):
        stream, is_part, _ = info.name.rpartition(_PARTS)
        if is_part:
            streams.setdefault(stream, []).append(info.name)
            sizes[stream] = sizes.get(stream, 0) + info.size
    for stream, parts in streams.items():
        if sizes[stream] <= LONGEST_JOINED:
            content = b"".join(read_from(bucket, stream, 0))
            if content:
                bucket.put(stream, content)
            bucket.delete(parts)
