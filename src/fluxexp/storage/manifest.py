"""The manifest: one JSON line for each attempt at a task, in files that are only ever appended to.

Every process writes a file of its own, named at random, so that no two ever share one and nothing in it depends on
a rank. Reading merges them: of a task's attempts success beats failure, and among equals the latest attempt counts.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from fluxexp.errors import StorageError
from fluxexp.records import Record


class ManifestWriter:
    """Appends records to a new file in `directory`. Not thread-safe: the writer thread owns it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{uuid.uuid4().hex}.jsonl"
        self._stream = self._path.open("x", encoding="utf-8")

    def append(self, record: Record) -> None:
        """Write the record's line and force it to disk: what it names is on disk already."""
        self._stream.write(record.to_json() + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        self._stream.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_attempts(directory: Path) -> Iterator[Record]:
    """Every record in `directory`, file by file.

    A last line without its end, left by a killed process, is passed over: its task counts as not done.

    Raises:
        StorageError: any other line is not a record.
    """
    for file in sorted(directory.glob("*.jsonl")):
        with file.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith("\n"):
                    break
                try:
                    yield Record.from_json(line)
                except ValueError as error:
                    raise StorageError(f"{file}, line {number} is not a record: {error}; remove that line") from error


def merge(attempts: Iterator[Record]) -> dict[str, Record]:
    """What became of each task, by key; `attempt` counts all attempts that were made at it."""
    outcome: dict[str, Record] = {}
    for record in attempts:
        known = outcome.get(record.key)
        if known is None or (record.status == "ok", record.attempt) >= (known.status == "ok", known.attempt):
            outcome[record.key] = record
    return outcome
