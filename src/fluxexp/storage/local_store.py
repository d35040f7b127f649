"""A store in a local directory: atomic files, append-only record files, and file locks for the claim."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fluxexp.errors import StorageError
from fluxexp.storage.atomic import TEMPORARY_PREFIX, remove_partial_files, write_atomically
from fluxexp.storage.file_sizes import LINK, LargeFolder, file_sizes
from fluxexp.storage.safe_paths import OutsideError, leads_out, path_inside, require_no_links_out
from fluxexp.storage.session_lock import LOCK, claimed
from fluxexp.storage.spool_file import SpoolFile

_PART_BYTES = 1 << 20
"""How much of a stream is read at once. The line at its end is completed."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """Implements `RunStore` in the directory `path`."""

    path: Path

    @property
    def address(self) -> str:
        """Path of the directory."""
        return str(self.path)

    def exists(self, key: str) -> bool:
        """See `RunStore.exists`."""
        try:
            mode = path_inside(self.path, key).stat().st_mode
        except (FileNotFoundError, NotADirectoryError, OutsideError):
            return False  # any other error must not look like a missing image, which would be made again
        return stat.S_ISREG(mode)

    def get(self, key: str) -> bytes | None:
        """See `RunStore.get`."""
        try:
            with _open_regular(path_inside(self.path, key)) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """See `RunStore.get_range`."""
        try:
            with _open_regular(path_inside(self.path, key)) as file:
                return os.pread(file.fileno(), max(0, end - start), start)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """See `RunStore.put`. Creates the directory of `key` if it is missing."""
        path = path_inside(self.path, key, replaces=True)
        try:
            write_atomically(path, data, durable=durable)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, durable=durable)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `RunStore.put_if_absent`. A hard link makes the complete file visible, and fails if `key` exists."""
        target = path_inside(self.path, key, replaces=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        complete = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        write_atomically(complete, data)
        try:
            os.link(complete, target)
        except FileExistsError:
            return False
        finally:
            complete.unlink()
        return True

    def new_file(self) -> SpoolFile:
        """See `RunStore.new_file`. It is in the directory itself, so that `put_file` only renames it."""
        self.path.mkdir(parents=True, exist_ok=True)
        return SpoolFile(self.path)

    def put_file(self, key: str, file: SpoolFile) -> None:
        """See `RunStore.put_file`. `file` comes from `new_file`."""
        assert file.path is not None
        file.sync()
        path = path_inside(self.path, key, replaces=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.path.replace(path)

    def append_record(self, stream: str, record: bytes, *, durable: bool = True) -> None:
        """See `RunStore.append_record`. A failed append leaves the stream as it was, as far as the disk allows.

        If the disk does not allow it, the next append begins on a new line, so that only one line is damaged.
        """
        fd = self._open_stream(path_inside(self.path, stream))
        try:
            end = os.fstat(fd).st_size
            is_torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
            try:
                _write_all(fd, (b"\n" if is_torn else b"") + record + b"\n")
                if durable:
                    os.fsync(fd)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(fd, end)
                raise
        finally:
            os.close(fd)

    def flush(self, prefix: str = "") -> None:
        """See `RunStore.flush`. No record waits."""

    def records(self, stream: str) -> list[bytes]:
        """See `RunStore.records`. The last line counts only if its newline is there."""
        *lines, _torn_or_empty = (self.get(stream) or b"").split(b"\n")
        return lines

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        """See `RunStore.read_records`. A position is an offset in bytes."""
        with _open_regular(path_inside(self.path, stream)) as file:
            file.seek(position)
            while part := file.read(_PART_BYTES) + file.readline():
                *lines, _torn_or_empty = part.split(b"\n")
                for line in lines:
                    position += len(line) + 1
                    yield position, line

    def records_at(self, stream: str, positions: Iterable[int]) -> Iterator[bytes]:
        """See `RunStore.records_at`."""
        with _open_regular(path_inside(self.path, stream)) as file:
            for position in positions:
                if file.tell() != position:
                    file.seek(position)
                yield file.readline().removesuffix(b"\n")

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `RunStore.sizes`. Leaves out temporary files and the lock. Another process lists a large folder."""
        try:
            with self._opened(prefix) as folder:
                large = LargeFolder.start(folder)
        except (FileNotFoundError, NotADirectoryError):
            large = None
        return self._sizes(prefix, large)

    def _sizes(self, prefix: str, large: LargeFolder | None) -> Iterator[tuple[str, int]]:
        try:
            with self._opened(prefix) as folder:
                for name, size in (large and large.sizes()) or file_sizes(folder):
                    if name[0] == "." and (name == LOCK or name.startswith(TEMPORARY_PREFIX)):
                        continue
                    if size != LINK:
                        yield name, size
                    elif self.exists(f"{prefix}{name}"):  # else it leads out
                        with suppress(FileNotFoundError):
                            yield name, os.stat(name, dir_fd=folder).st_size
        except (FileNotFoundError, NotADirectoryError):
            return

    @contextmanager
    def _opened(self, prefix: str) -> Generator[int]:
        folder = os.open(path_inside(self.path, prefix.rstrip("/")), os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield folder
        finally:
            os.close(folder)

    def list(self, prefix: str) -> Iterator[str]:
        """See `RunStore.list`. Does not list temporary files and the lock."""
        try:
            with os.scandir(path_inside(self.path, prefix)) as entries:
                names = [entry.name for entry in entries if entry.is_file() and not leads_out(entry, self.path)]
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in sorted(names):
            if name != LOCK and not name.startswith(TEMPORARY_PREFIX):
                yield prefix + name

    def modified_ns(self, key: str) -> int:
        """See `RunStore.modified_ns`."""
        return path_inside(self.path, key).stat().st_mtime_ns

    def delete(self, key: str) -> None:
        """See `RunStore.delete`."""
        path_inside(self.path, key, replaces=True).unlink(missing_ok=True)

    def is_empty(self) -> bool:
        """See `RunStore.is_empty`. The lock does not count: the caller holds it. A missing directory is empty."""
        return not self.path.exists() or not self._entries()

    def clear(self, last: str) -> None:
        """See `RunStore.clear`. The lock stays: the caller holds it."""
        for entry in sorted(self._entries(), key=lambda entry: entry.name == last):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def remove_partial_files(self) -> None:
        """See `RunStore.remove_partial_files`. Looks in the directory and in its direct subdirectories."""
        for directory in (
            self.path,
            *(entry for entry in self._entries() if entry.is_dir() and not entry.is_symlink()),
        ):
            remove_partial_files(directory)

    def require_usable(self) -> None:
        """See `RunStore.require_usable`."""
        existing = self.path.absolute()
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise StorageError(f"{self.path} cannot be used: {existing} is not a directory that can be written")
        require_no_links_out(self.path)
        if (self.path / LOCK).is_file():
            with self.claim():
                pass

    @contextmanager
    def claim(self) -> Generator[None]:
        """See `RunStore.claim`. Creates the directory. `session_lock.py` has the rules."""
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                require_no_links_out(self.path)
                stack.enter_context(claimed(self.path))
            except OSError as error:
                raise StorageError(f"{self.path} cannot be used: {error}") from error
            yield

    def _entries(self) -> Sequence[Path]:
        return [entry for entry in self.path.iterdir() if entry.name != LOCK]

    @staticmethod
    def _open_stream(path: Path) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o644)


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. To open a FIFO, which someone may have left there, would wait for ever."""
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is not a regular file")
    return file


def _write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. `os.write` writes less than given when the disk becomes full; its next call raises."""
    while data:
        data = data[os.write(fd, data) :]
