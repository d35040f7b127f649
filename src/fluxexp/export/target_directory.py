"""The directory that an export makes: under a temporary name until it is complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fluxexp.errors import StorageError
from fluxexp.storage.atomic import TEMPORARY_PREFIX


@contextmanager
def target_directory(target: Path) -> Generator[Path]:
    """An empty directory beside `target`, which gets its name at the end, if there was no error.

    What a killed export left is removed. A file or directory that exists is never replaced.

    Raises:
        StorageError: `target` exists, another process exports to it, or it cannot be made.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    try:
        if target.exists() or target.is_symlink():
            raise StorageError(f"{target} exists: remove it, or choose another --output")
        temporary.mkdir(parents=True, exist_ok=True)
        lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StorageError(f"{target} cannot be made: {error}; choose another --output") from error
    try:
        _lock(lock, target)
        try:
            _empty(temporary)
            yield temporary
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{target} cannot be written: {error}") from error
    finally:
        os.close(lock)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file, and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _lock(directory: int, target: Path) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(f"another process exports to {target}: wait until it ends") from None


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
