"""Reserves run directories for one session, with one open file for all runs beside each other.

A session locks the file `.lock` of its first run with flock, which the kernel releases when the process ends. The
`.lock` of each further run in the same folder only names this file (`via`) and the session (`token`). So a sweep of any
number of points needs one file descriptor. A claim is a short critical section under flock on the run's own `.lock`:
read who holds the run, find out whether that session still lives, write the own name.

Some network file systems have no flock. There, `lock_file.py` replaces it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fluxexp.errors import StorageError
from fluxexp.storage.lock_file import LockFile
from fluxexp.storage.lock_owner import Owner

LOCK = ".lock"
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
"""What flock says on a file system without locks."""
_TRIES = 20
_PAUSE_S = 0.02
"""Another session can hold a `.lock` for a moment, while it looks who owns it."""


@dataclass(slots=True)
class _Folder:
    """What this process holds in one folder of runs."""

    fd: int
    """The locked `.lock` of the first run."""
    first: str
    """Name of that run's directory."""
    token: str
    num_runs: int = 1


_folders: dict[Path, _Folder] = {}
_guard = threading.Lock()


@contextmanager
def claimed(directory: Path) -> Generator[None]:
    """Reserve `directory`, which exists, for this session.

    Raises:
        StorageError: another session holds it. The message says which.
        OSError: its lock cannot be read or written.
    """
    lock_file = None
    try:
        _claim(directory)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock_file = LockFile(directory / LOCK)
        lock_file.acquire(error)
    try:
        yield
    finally:
        if lock_file is not None:
            lock_file.release()
        else:
            _release(directory)


def _claim(directory: Path) -> None:
    parent = directory.absolute().parent
    with _guard:
        held = _folders.get(parent)
        fd = _locked(directory)
        try:
            owner = Owner.parse(os.pread(fd, 1 << 16, 0))
            if owner is not None and _is_alive(owner, directory):
                raise _in_use(directory, owner)
            folder = held or _Folder(fd, directory.name, uuid.uuid4().hex)
            _write(fd, Owner.of_this_process(folder.token, via=folder.first))
        except BaseException:
            os.close(fd)
            raise
        if held is None:
            _folders[parent] = folder
        else:
            held.num_runs += 1
            os.close(fd)


def _release(directory: Path) -> None:
    """Forget the run. The file of the folder's first run stays locked until the last run is released."""
    parent = directory.absolute().parent
    with _guard:
        folder = _folders[parent]
        folder.num_runs -= 1
        # A name that stays in a `.lock` because of an error is harmless: its session has ended soon.
        with suppress(OSError):
            if folder.first != directory.name:
                _clear(directory / LOCK, folder.token)
        if not folder.num_runs:
            del _folders[parent]
            with suppress(OSError):
                os.ftruncate(folder.fd, 0)
            os.close(folder.fd)


def _locked(directory: Path) -> int:
    """A descriptor of the locked `.lock` of `directory`. Waits a moment for a session that only looks at it.

    Raises:
        StorageError: another session holds it.
        OSError: it cannot be opened or locked.
    """
    fd = _open(directory / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            else:
                return fd
        raise _in_use(directory, Owner.parse(os.pread(fd, 1 << 16, 0)))
    except BaseException:
        os.close(fd)
        raise


def _open(lock: Path, flags: int) -> int:
    """Open a `.lock`. OSError if it is not a regular file: to open a FIFO could wait for ever."""
    fd = os.open(lock, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{lock} is not a regular file: remove it")
    return fd


def _is_alive(owner: Owner, directory: Path) -> bool:
    """Whether the session that wrote its name into the `.lock` of `directory` still runs. The caller has locked it."""
    if not owner.has_kernel_lock:
        return LockFile(directory / LOCK).is_alive(owner)
    if owner.via in ("", directory.name):
        return False  # the session would hold the lock that the caller has
    first = directory.absolute().parent / owner.via / LOCK
    try:
        fd = _open(first, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = Owner.parse(os.pread(fd, 1 << 16, 0))
        return holder is None or holder.token == owner.token
    finally:
        os.close(fd)
    return False


def _write(fd: int, owner: Owner) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, owner.to_bytes(), 0)


def _clear(lock: Path, token: str) -> None:
    """Remove the name of the session `token` from a `.lock`. Without it, the session that ended would hold the run."""
    try:
        fd = _open(lock, os.O_RDWR)
    except FileNotFoundError:
        return  # somebody deleted the run
    try:
        owner = Owner.parse(os.pread(fd, 1 << 16, 0))
        if owner is not None and owner.token == token:
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _in_use(directory: Path, owner: Owner | None) -> StorageError:
    who = "" if owner is None else f" ({owner})"
    return StorageError(f"{directory} is in use by another session of the same run{who}; wait until that session ends")
