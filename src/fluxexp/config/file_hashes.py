"""SHA-256 of whole files. A large file is read once per machine, and its hash is kept in the user's cache directory.

A kept hash belongs to a path, a size, an inode and a modification time. Each has its own small file, which is written
atomically, so ranks and runs can share the directory. A damaged file counts as missing.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from fluxexp.config.user_cache import cache_directory, exclusively
from fluxexp.records import content_hash

LARGE_BYTES = 1 << 24
"""Hashes of larger files are kept. To read a smaller one takes a few milliseconds."""
_THREADS = 8
_HASH = re.compile(r"[0-9a-f]{64}\n")


def file_content(file: Path) -> str:
    """Return size and SHA-256 of a whole file, as `SIZE-HASH`.

    Raises:
        OSError: the file cannot be read.
    """
    state = file.stat()
    return f"{state.st_size}-{_known(str(file.resolve()), state.st_size, state.st_ino, state.st_mtime_ns)}"


def file_contents(files: Iterable[Path]) -> list[str]:
    """`file_content` of each file. Several are read at once: the hash of a large model takes a minute on one core."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash") as pool:
        return list(pool.map(file_content, files))


def unread_bytes(files: Iterable[Path]) -> int:
    """The size of those large files whose hash is not known yet."""
    states = [(file.resolve(), file.stat()) for file in files]
    return sum(
        state.st_size
        for path, state in states
        if state.st_size > LARGE_BYTES
        and _read_kept(_kept_file(str(path), state.st_size, state.st_ino, state.st_mtime_ns)) is None
    )


@lru_cache(maxsize=1024)
def _known(path: str, size: int, inode: int, mtime_ns: int) -> str:
    """The hash of a file in this state. Cached, because a sweep asks for the same files at every point."""
    if size <= LARGE_BYTES:
        return _hash(path)
    kept = _kept_file(path, size, inode, mtime_ns)
    if (found := _read_kept(kept)) is not None:
        return found
    with exclusively(kept.with_suffix(".lock")):  # of the ranks of a machine, one reads the file
        if (found := _read_kept(kept)) is not None:
            return found
        digest = _hash(path)
        state = Path(path).stat()
        if (state.st_size, state.st_ino, state.st_mtime_ns) == (size, inode, mtime_ns):  # it did not change meanwhile
            _keep(kept, digest)
    return digest


def _hash(path: str) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _kept_file(path: str, size: int, inode: int, mtime_ns: int) -> Path:
    return cache_directory() / "hashes" / content_hash([path, size, inode, mtime_ns], 32)


def _read_kept(kept: Path) -> str | None:
    try:
        text = kept.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text.strip() if _HASH.fullmatch(text) else None


def _keep(kept: Path, digest: str) -> None:
    partial = kept.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(f"{digest}\n", encoding="ascii")
        partial.replace(kept)  # atomic: other processes never see a part of a file
    except OSError:  # without the file, the next process has to read the weights again
        with suppress(OSError):
            partial.unlink(missing_ok=True)
