"""Where compiled code and measurements are kept between runs, and who makes them where several processes need them.

Everything lies in the user's cache directory. A file lock lets one process of a machine compile a shape while others
wait for its result: no message between ranks is needed, and a process that dies holds nobody up.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fluxexp.config.user_cache import cache_directory as cache_directory
from fluxexp.records import content_hash


def cache_file(kind: str, key: Sequence[Any], suffix: str) -> Path:
    """The file of `kind` for everything in `key`; its directory is there, if it can be made."""
    directory = cache_directory() / kind
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{content_hash(list(key))}{suffix}"


def keep_compiled_code() -> Path:
    """Let the compiler keep its code where the next process finds it, unless the user said where; the directory."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_directory() / "compiled")
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


@contextmanager
def first_alone(key: Sequence[Any]) -> Generator[None]:
    """Let one process into the body by itself, then all that waited at once; for what the first leaves in a cache."""
    with _locked(cache_file("locks", key, ".lock")) as lock:
        if lock is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextmanager
def exclusively(file: Path) -> Generator[None]:
    """One process at a time."""
    with _locked(file) as lock:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _locked(file: Path) -> Generator[int | None]:
    """A file to lock; None where there can be none: then processes do the same work side by side."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield None
        return
    try:
        yield lock
    finally:
        os.close(lock)  # and with it the lock, as at any death of the process
