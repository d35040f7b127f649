"""The directory in the user's cache for everything that later runs can reuse, and locks on its files.

The locks are flock and not the library filelock. They must never stop a run: where a cache cannot be written, or has no
locks, the work is done twice. filelock raises an error there, or makes a lock file that a killed process leaves behind.
It also has no way to wait for an exclusive lock with a shared one, as `compile_cache.first_alone` does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path


def cache_directory() -> Path:
    """Return the cache directory of fluxexp. It may not exist yet."""
    return user_cache_path("fluxexp")


@contextmanager
def lock_descriptor(file: Path) -> Generator[int | None]:
    """The descriptor of a file to lock; None if it cannot be opened: then processes may do the same work twice."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield None
        return
    try:
        yield lock
    finally:
        os.close(lock)  # this also releases the lock, as the end of the process does


@contextmanager
def exclusively(file: Path) -> Generator[None]:
    """Run the body in one process at a time."""
    with lock_descriptor(file) as lock:
        if lock is not None:
            with suppress(OSError):  # a network file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
