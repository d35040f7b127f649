"""SHA-256 of whole files: weights of models, and images of datasets. A file is read once per machine.

A hash belongs to a path, a size, an inode and a modification time. It is stored in memory and in the user's cache, in
one file of JSON lines for each folder. Several processes can append to such a file at the same time, because a line is
one write. A damaged or lost cache only costs time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from fluxexp.config.user_cache import cache_directory, exclusively

LARGE_BYTES = 1 << 24
"""Of several processes that need the hash of a larger file, one reads the file and the others wait for it."""
_SETTLED_NS = 2_000_000_000
"""A hash is stored only if the file was last changed at least this long ago. Otherwise a second change within the
resolution of the file system's clock would go unnoticed."""
_THREADS = 8
_HASH = re.compile(r"[0-9a-f]{64}")

Stamp = tuple[int, int, int]
"""Size in bytes, inode, and modification time in nanoseconds."""


def file_stamp(stat: os.stat_result) -> Stamp:
    """What changes when a program writes or replaces a file."""
    return stat.st_size, stat.st_ino, stat.st_mtime_ns


class FileHashes:
    """Hashes of files. Thread-safe."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, tuple[Stamp, str]]] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> str:
        """SHA-256 of the file's content, in hex.

        Raises:
            OSError: the file cannot be read.
            ValueError: the path contains a null character.
        """
        real = os.path.realpath(path)
        stat = os.stat(real)  # noqa: PTH116 (as the path is text)
        if not S_ISREG(stat.st_mode):
            raise OSError(f"{path} is not a regular file")  # reading a FIFO or a device would never end
        stamp = file_stamp(stat)
        if (digest := self._find(real, stamp)) is not None:
            return digest
        if stamp[0] <= LARGE_BYTES:
            return self._read(real, stamp)
        folder, name = os.path.split(real)
        with exclusively(_cache_file(folder).with_name(f"{_hex(folder)}-{_hex(name)}.lock")):
            self._forget(folder)  # another process may have read the file meanwhile
            return self._find(real, stamp) or self._read(real, stamp)

    def knows(self, path: Path) -> bool:
        """Whether the hash of the file is stored. OSError if there is no such file."""
        return self._find(os.path.realpath(path), file_stamp(path.stat())) is not None

    def _find(self, real: str, stamp: Stamp) -> str | None:
        folder, name = os.path.split(real)
        with self._lock:
            found = self._known(folder).get(name)
        return found[1] if found is not None and found[0] == stamp else None

    def _read(self, real: str, stamp: Stamp) -> str:
        with open(real, "rb") as stream:  # noqa: PTH123 (as the path is text)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            is_unchanged = file_stamp(os.fstat(stream.fileno())) == stamp
        if is_unchanged and time.time_ns() - stamp[2] > _SETTLED_NS:
            with self._lock:
                self._store(real, stamp, digest)
        return digest

    def _known(self, folder: str) -> dict[str, tuple[Stamp, str]]:
        if folder not in self._folders:
            self._folders[folder] = _read_cache(_cache_file(folder))
        return self._folders[folder]

    def _forget(self, folder: str) -> None:
        with self._lock:
            self._folders.pop(folder, None)

    def _store(self, real: str, stamp: Stamp, digest: str) -> None:
        folder, name = os.path.split(real)
        self._known(folder)[name] = stamp, digest
        line = json.dumps([name, *stamp, digest], separators=(",", ":"))
        file = _cache_file(folder)
        with suppress(OSError):  # without a writable cache, later processes read the file again
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as stream:
                stream.write(f"\n{line}\n".encode())  # the first newline ends a line that a killed process left


file_hash = FileHashes()
"""The hashes of this process."""


def file_content(file: Path) -> str:
    """Return size and SHA-256 of a whole file, as `SIZE-HASH`.

    Raises:
        OSError: the file cannot be read.
    """
    return f"{file.stat().st_size}-{file_hash(file)}"


def file_contents(files: Iterable[Path]) -> list[str]:
    """`file_content` of each file. Several are read at once: hashing is bound by the speed of one core."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        return list(pool.map(file_content, files))


def unread_bytes(files: Iterable[Path]) -> int:
    """The size of those large files whose hash is not known yet."""
    large = [file for file in files if file.stat().st_size > LARGE_BYTES]
    return sum(file.stat().st_size for file in large if not file_hash.knows(file))


def _cache_file(folder: str) -> Path:
    return cache_directory() / "hashes" / f"{_hex(folder)}.jsonl"


def _hex(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:32]


def _read_cache(file: Path) -> dict[str, tuple[Stamp, str]]:
    """The hashes in `file`, by name; the last line about a file counts. Damaged lines are left out."""
    known: dict[str, tuple[Stamp, str]] = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return known
    for line in lines:
        with suppress(ValueError, TypeError):
            name, size, inode, changed_ns, digest = json.loads(line)
            if isinstance(digest, str) and _HASH.fullmatch(digest):
                known[name] = (size, inode, changed_ns), digest
    return known
