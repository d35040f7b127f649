"""A lock for file systems without flock: a file that exists while a session holds the run, and that it renews.

Who finds the file decides whether its session still lives: by the process, if it is one of the same host, else by the
time of the last renewal. Times are compared with that of a new file in the same folder, so clocks need not agree.
"""

from __future__ import annotations

import os
import threading
import uuid
from contextlib import suppress
from pathlib import Path

from fluxexp.errors import StorageError
from fluxexp.storage.atomic import TEMPORARY_PREFIX
from fluxexp.storage.lock_owner import Owner
from fluxexp.terminal import say

RENEW_S = 10.0
STALE_S = 120.0
"""A session on another host that has not renewed its file for this long has ended."""

_said: set[str] = set()


class LockFile:
    """The file `path`, held by this process between `acquire` and `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner: Owner | None = None

    def acquire(self, why: OSError) -> None:
        """Create the file. `why` says why there is no lock of the kernel.

        Raises:
            StorageError: another session holds the run.
            OSError: the file cannot be written.
        """
        owner = Owner.of_this_process(uuid.uuid4().hex, via="", has_kernel_lock=False)
        if self._path.exists() and self._path.stat().st_size == 0:
            self._remove(b"")  # a session with flock made it, and has ended
        if not self._create(owner):
            content = self._path.read_bytes()
            other = Owner.parse(content)
            if other is None or self.is_alive(other):
                raise StorageError(self._in_use(other))
            self._remove(content)
            if not self._create(owner):
                raise StorageError(self._in_use(Owner.parse(self._path.read_bytes())))
        self._owner = owner
        _renewer.add(self._path)
        _say_once(self._path, why)

    def release(self) -> None:
        """Remove the file, if it is still that of this session."""
        _renewer.discard(self._path)
        if self._owner is not None:
            with suppress(OSError):  # the next session finds that this process has ended
                self._remove(self._owner.to_bytes())
            self._owner = None

    def is_alive(self, owner: Owner) -> bool:
        """Whether the session `owner`, whose file this is, still runs."""
        if owner.is_local:
            return owner.has_process
        if owner.has_kernel_lock:
            return True  # it does not renew its file, and its lock cannot be seen from here
        return self._now_ns() - self._path.stat().st_mtime_ns < STALE_S * 1e9

    def _create(self, owner: Owner) -> bool:
        """Create the file with its content in one step. Returns False if it exists."""
        complete = self._path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        complete.write_bytes(owner.to_bytes())
        try:
            os.link(complete, self._path)
        except FileExistsError:
            return False
        finally:
            complete.unlink()
        return True

    def _remove(self, content: bytes) -> None:
        """Remove the file if it has this content. It is moved away first: only one process can do that."""
        moved = self._path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            self._path.rename(moved)
            if moved.read_bytes() != content:  # another session took the run in between
                with suppress(FileExistsError):
                    os.link(moved, self._path)
            moved.unlink()

    def _now_ns(self) -> int:
        """The time of the file system."""
        fresh = self._path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        fresh.touch()
        try:
            return fresh.stat().st_mtime_ns
        finally:
            fresh.unlink()

    def _in_use(self, owner: Owner | None) -> str:
        who = "" if owner is None else f" ({owner})"
        return (
            f"{self._path.parent} is in use by another session of the same run{who}; wait until that session ends. "
            f"This file system has no file locks: if the session has ended, remove {self._path}"
        )


class _Renewer:
    """Renews the times of all lock files of this process, on one thread."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, path: Path) -> None:
        with self._lock:
            self._paths.add(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lock-file", daemon=True)
                self._thread.start()

    def discard(self, path: Path) -> None:
        with self._lock:
            self._paths.discard(path)

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(RENEW_S):
            with self._lock:
                paths = tuple(self._paths)
            for path in paths:
                with suppress(OSError):  # a passing trouble: the next renewal comes in time
                    os.utime(path)


_renewer = _Renewer()


def _say_once(path: Path, why: OSError) -> None:
    folder = str(path.parent.parent)
    if folder not in _said:
        _said.add(folder)
        say(
            f"note       {folder} is on a file system without file locks ({os.strerror(why.errno or 0)}), so sessions "
            "exclude each other by lock files that they renew; mount it with locks (Lustre: `-o flock`) if you can",
            urgent=True,
        )
