"""An index of the manifest: what counts of each task, in columns instead of a million objects.

Each line is read and parsed once. `update` reads only what was appended since then. The index keeps about 250 bytes per
task; a complete `Record` is read again from its line when someone asks for it (`stored_records.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from fluxexp.errors import StorageError
from fluxexp.garbage_collection import collector_paused
from fluxexp.records import Record
from fluxexp.storage.array_search import find_each
from fluxexp.storage.manifest_columns import COLUMNS, Damage, Sparse
from fluxexp.storage.manifest_line import Attempt, attempt_of, columns, file_name, parse_line, parse_lines, winner
from fluxexp.storage.record_lines import line_streams
from fluxexp.storage.result_files import IMAGES, MANIFEST
from fluxexp.storage.run_store import RunStore

Rows = npt.NDArray[np.int32]
"""Numbers of rows of the index."""
Flags = npt.NDArray[np.bool_]

_MOST_SUFFIXES = 16
_LINES = 4096
"""Lines that are parsed at once."""


@dataclass(slots=True)
class _Stream:
    """How far a stream was read."""

    key: str
    end: int = 0
    num_lines: int = 0


class ManifestIndex:
    """One row for each task of the manifest of `store`, in the order of first attempts."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.row_of: dict[str, int] = {}
        """Row by task key."""
        self.sparse = Sparse()
        self.damage = Damage()
        self.unreadable: list[str] = []
        """Messages about streams that could not be read to their end."""
        self.rows_of_tasks: dict[Hashable, Rows] = {}
        """What `Plan` has looked up: rows by task number. Valid as long as the index, because rows do not change."""
        self._streams: list[_Stream] = []
        self._columns = {name: array(code) for name, code in COLUMNS.items()}
        self._suffix_of = array("i")
        """By row, see `_suffix_number`."""
        self._suffixes: list[str] = []
        self._attempts: dict[int, list[Attempt]] = {}
        """All attempts of the rows that have several."""

    def __len__(self) -> int:
        return len(self.row_of)

    def column(self, name: str) -> npt.NDArray[Any]:
        """The field `name` of the attempts that count, by row: one of `COLUMNS`. -1 stands for None."""
        return np.array(self._columns[name])

    @collector_paused()
    def update(self) -> bool:
        """Read what was appended. Returns False if a known stream is gone: then the index is not valid any more."""
        try:
            found = line_streams(self.store, MANIFEST)
        except OSError as error:
            self.unreadable = [f"{self.store.address}/{MANIFEST} cannot be read: {error}"]
            return True
        known = {stream.key for stream in self._streams}
        if not known <= set(found):
            return False
        self._streams += [_Stream(key) for key in found if key not in known]
        self.unreadable = []
        for number, stream in enumerate(self._streams):
            try:
                self._read(number, stream)
            except OSError as error:
                self.unreadable.append(f"{self.store.address}/{stream.key} cannot be read: {error}")
        return True

    def _read(self, number: int, stream: _Stream) -> None:
        lines = self.store.read_records(stream.key, stream.end)
        while part := list(islice(lines, _LINES)):
            ends, texts = zip(*part, strict=True)
            starts = [stream.end, *ends[:-1]]
            records = parse_lines(texts)
            if records is None or not self._extend(records, number, starts):
                for place, (start, text) in enumerate(zip(starts, texts, strict=True), start=stream.num_lines + 1):
                    self._read_line(number, start, text, place)
            stream.num_lines += len(part)
            stream.end = ends[-1]

    def _read_line(self, number: int, start: int, text: bytes, place: int) -> None:
        try:
            key, attempt = parse_line(text, number, start)
        except ValueError as error:
            self.damage.num_lines += 1
            reason = " ".join(str(error).split())
            self.damage.first = self.damage.first or f"{self._streams[number].key}, line {place}: {reason}"
        else:
            self._add(key, attempt)

    def _extend(self, records: Sequence[Record], stream: int, starts: Sequence[int]) -> bool:
        """Add rows for `records`. Does nothing and returns False if one of their tasks has a row already."""
        keys = [record.key for record in records]
        if len(set(keys)) < len(keys) or not self.row_of.keys().isdisjoint(keys):
            return False
        first = len(self.row_of)
        self.row_of.update(zip(keys, range(first, first + len(keys)), strict=True))
        for name, values in columns(records, stream, starts).items():
            self._columns[name] += array(COLUMNS[name], values)
        suffixes = self._suffix_numbers(keys, [record.file for record in records])
        self._suffix_of += array("i", suffixes)
        for row, (record, number) in enumerate(zip(records, suffixes, strict=True), first):
            if number < 0 or record.inputs is not None or record.error is not None or record.notes:
                self.sparse.set(row, attempt_of(record, stream, 0), is_other=number < 0)
        return True

    def _suffix_numbers(self, keys: Sequence[str], files: Sequence[str | None]) -> Sequence[int]:
        """The `_suffix_number` of each task. Usually, all have the same."""
        number = self._suffix_number(keys[0], file_name(files[0]))
        if number >= 0:
            suffix = self._suffixes[number]
            if [f"{IMAGES}{key}{suffix}" for key in keys] == files:
                return [number] * len(keys)
        return [self._suffix_number(key, file_name(file)) for key, file in zip(keys, files, strict=True)]

    def _add(self, key: str, attempt: Attempt) -> None:
        row = self.row_of.setdefault(key, len(self.row_of))
        if row == len(self._suffix_of):
            for name, column in self._columns.items():
                column.append(getattr(attempt, name))
            self._suffix_of.append(-1)
        else:
            attempts = self._attempts.setdefault(row, [])
            attempts += [attempt] if attempts else [self._attempt(key, row), attempt]
            attempt = winner(attempts)
            for name, column in self._columns.items():
                column[row] = getattr(attempt, name)
        number = self._suffix_number(key, attempt.file)
        self._suffix_of[row] = number
        self.sparse.set(row, attempt, is_other=number < 0)

    def _suffix_number(self, key: str, file: str | None) -> int:
        """Index in `_suffixes` of the extension in `file` if its name is the task key and an extension, else -1."""
        if file is None:
            return -1
        suffix = file[len(key) :]
        if not file.startswith(key) or suffix.rfind(".") != 0:
            return -1
        if suffix not in self._suffixes:
            if len(self._suffixes) == _MOST_SUFFIXES:
                return -1
            self._suffixes.append(suffix)
        return self._suffixes.index(suffix)

    def _attempt(self, key: str, row: int) -> Attempt:
        """The attempt of a row that has only one."""
        values: dict[str, Any] = {name: column[row] for name, column in self._columns.items()}
        sparse, number = self.sparse, self._suffix_of[row]
        return Attempt(
            **(values | {"is_ok": bool(values["is_ok"])}),
            file=key + self._suffixes[number] if number >= 0 else sparse.files.get(row),
            error=sparse.errors.get(row),
            inputs=sparse.inputs.get(row),
            notes=sparse.notes.get(row, ()),
        )

    @collector_paused()
    def find_images(self, files: Iterable[tuple[str, int]]) -> Flags:
        """For each row, whether its attempt succeeded and its image file is there, with the size that the line says.

        `files` are the names and sizes of all images. Compares hashes of names, because a dict of a million names is
        several times slower. Python's hashes have 64 bits, like the hashes in the names themselves.
        """
        flags = np.zeros(len(self), dtype=np.bool_)
        if not len(self):
            return flags
        expected = self.column("num_bytes")
        others: dict[str, list[int]] = {}
        for row, name in self.sparse.files.items():
            others.setdefault(name, []).append(row)
        hashes, sizes = array("q"), array("q")
        found_files = iter(files)
        while part := list(islice(found_files, _LINES)):
            names, found = zip(*part, strict=True)
            hashes += array("q", map(hash, names))
            sizes += array("q", found)
            for name, size in part if others else ():
                for row in others.get(name, ()):
                    flags[row] = expected[row] in (-1, size)
        rows = np.flatnonzero(np.array(self._suffix_of) >= 0)
        places = find_each(np.array(self._file_hashes()), np.array(hashes))
        rows, places = rows[places >= 0], places[places >= 0]
        flags[rows] = (expected[rows] < 0) | (expected[rows] == np.array(sizes)[places])
        flags &= self.column("is_ok") != 0
        return flags

    def _file_hashes(self) -> array[int]:
        """Hashes of the names of image files, by row, without rows whose file is not the task key and an extension."""
        suffixes, rows = self._suffixes, zip(self.row_of, self._suffix_of, strict=True)
        return array("q", (hash(f"{key}{suffixes[number]}") for key, number in rows if number >= 0))

    def records(self, rows: Rows) -> Iterator[Record]:
        """Read the records of `rows` again from their lines, in this order.

        Raises:
            StorageError: a stream was changed other than by appending to it, or cannot be read.
        """
        streams, positions = self._columns["stream"], self._columns["position"]
        for stream, group in groupby(rows.tolist(), key=streams.__getitem__):
            key = self._streams[stream].key
            numbers = list(group)
            lines = self.store.records_at(key, (positions[row] for row in numbers))
            try:
                for row, line in zip(numbers, lines, strict=True):
                    record = Record.from_json(line)
                    if self.row_of.get(record.key) != row:
                        raise ValueError("it has another record at the place of a known one")
                    yield record
            except (OSError, ValueError) as error:
                reason = f"{self.store.address}/{key} changed while it was used ({error}); start the command again"
                raise StorageError(reason) from error
