"""Hashes of the content of files. A file is read once: the hash is kept by its path, size, inode and modification time.

Hashes are kept in memory and in the user's cache, with one file of JSON lines for each folder. Several processes can
append to it at the same time, because a line is written at once. A damaged or lost cache only costs time.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fluxexp.config.user_cache import cache_directory
from fluxexp.records import content_hash

_SETTLED_NS = 2_000_000_000
"""A hash is kept only if the file was last changed at least this long ago. So a second change within the resolution of
the file system's clock is not missed."""

Stamp = tuple[int, int, int]
"""Size in bytes, inode, and modification time in nanoseconds."""


class FileHashes:
    """Hashes of files. Thread-safe."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, tuple[Stamp, str]]] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> str | None:
        """SHA-256 of the file's content, in hex; None if the file cannot be read."""
        folder, name = os.path.split(os.path.abspath(path))
        try:
            stamp = file_stamp(path.stat())
            with self._lock:
                known = self._known(folder).get(name)
            if known is not None and known[0] == stamp:
                return known[1]
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                is_unchanged = file_stamp(os.fstat(stream.fileno())) == stamp
        except (OSError, ValueError):  # ValueError: a null character in the name
            return None
        if is_unchanged and time.time_ns() - stamp[2] > _SETTLED_NS:
            with self._lock:
                self._keep(folder, name, stamp, digest)
        return digest

    def _known(self, folder: str) -> dict[str, tuple[Stamp, str]]:
        if folder not in self._folders:
            self._folders[folder] = _read_cache(_cache_file(folder))
        return self._folders[folder]

    def _keep(self, folder: str, name: str, stamp: Stamp, digest: str) -> None:
        self._known(folder)[name] = stamp, digest
        line = json.dumps([name, *stamp, digest], separators=(",", ":"))
        file = _cache_file(folder)
        with suppress(OSError):  # without a writable cache, later processes read the file again
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as stream:
                stream.write(f"{line}\n".encode())


file_hash = FileHashes()
"""The hashes of this process."""


def file_stamp(stat: os.stat_result) -> Stamp:
    """What changes when a program writes or replaces a file."""
    return stat.st_size, stat.st_ino, stat.st_mtime_ns


def files_content(paths: Sequence[Path | None]) -> str | None:
    """A short hash of the content of files, in order; None if one of them cannot be read. A path can be None."""
    hashes = [None if path is None else file_hash(path) for path in paths]
    is_known = all(path is None or digest is not None for path, digest in zip(paths, hashes, strict=True))
    return content_hash(hashes) if is_known else None


def _cache_file(folder: str) -> Path:
    return cache_directory() / "content" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.jsonl"


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
            if isinstance(digest, str):
                known[name] = (size, inode, changed_ns), digest
    return known
