"""Names and sizes of the files in a folder; also a program that writes them to its standard output.

A `stat` for each of a million images takes seconds. `LargeFolder` runs this file in a process of its own, so that rank
0 reads the manifest meanwhile. It imports only the standard library, and starts in a few milliseconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

LINK = -1
"""Instead of the size of a link: only the caller knows whether to follow it."""
_LARGE_FOLDER_BYTES = 1 << 20
"""Size of a folder itself from which on a process pays off; ten to fifty thousand files on most file systems."""
_PART_BYTES = 1 << 20


def file_sizes(folder: int) -> Iterator[tuple[str, int]]:
    """Yield the name and size of each regular file, and the name of each link, in the open directory `folder`."""
    with os.scandir(folder) as entries:  # relative to `folder`, so that a path is not looked up for each file
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # it was removed after it was listed
                    yield entry.name, entry.stat(follow_symlinks=False).st_size
            elif entry.is_symlink():
                yield entry.name, LINK


class LargeFolder:
    """Lists a folder in another process, from now on."""

    def __init__(self, folder: int, output: IO[bytes]) -> None:
        self._output = output
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder)],
            pass_fds=(folder,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends this process first, which ends the other one
        )
        self._end = weakref.finalize(self, _end, self._process, output)

    @classmethod
    def start(cls, folder: int) -> LargeFolder | None:
        """List the open directory `folder` if it is large. None if it is not, or if no process can be started."""
        try:
            if os.fstat(folder).st_size < _LARGE_FOLDER_BYTES:
                return None
            output = tempfile.TemporaryFile()  # noqa: SIM115 (`_end` closes it)
        except OSError:
            return None
        try:
            return cls(folder, output)
        except OSError:
            output.close()
            return None

    def sizes(self) -> Iterator[tuple[str, int]] | None:
        """What `file_sizes` yields, when the process has ended. None if it failed, for whatever reason."""
        if self._process.wait():
            self._end()
            return None
        return self._read()

    def _read(self) -> Iterator[tuple[str, int]]:
        self._output.seek(0)
        rest = b""
        while part := self._output.read(_PART_BYTES):
            whole, end, rest = (rest + part).rpartition(b"\0")
            fields = os.fsdecode(whole + end).replace("\0", "/").split("/")
            yield from zip(fields[:-1:2], map(int, fields[1::2]), strict=True)
        self._end()


def _end(process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    process.kill()
    process.wait()
    output.close()


def _main(folder: int) -> None:
    """List the open directory `folder`. A name contains neither of the separators."""
    sys.stdout.buffer.writelines(os.fsencode(f"{name}/{size}\0") for name, size in file_sizes(folder))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
