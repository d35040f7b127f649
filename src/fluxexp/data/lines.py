"""The lines of a text file, with their byte offsets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from fluxexp.config.file_hashes import file_stamp


class Lines:
    """Lines of a file as text, from byte `start` on.

    `stamp` says which content the file had when it was opened (`file_stamp`). `offset` is the byte offset of the next
    line. `damaged` becomes true when a line is not UTF-8. `ended` becomes true when the iterator reaches the end of the
    file.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._stream = path.open("rb")
        self.stamp = file_stamp(os.fstat(self._stream.fileno()))
        self._stream.seek(start)
        self.offset = start
        self.damaged = False
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            encoding = "utf-8" if self.offset else "utf-8-sig"
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError:
                text = line.decode(encoding, errors="replace")
                self.damaged = True
            self.offset += len(line)
            yield text
        self.ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
