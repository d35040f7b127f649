"""Rows of a table as mappings, with random access.

For .csv, .jsonl and .txt files, opening reads the file once and keeps only the byte offset of each row (8 bytes). A row
is parsed again on each access. The columns of a .parquet file stay in memory. In all formats an empty value counts as
missing.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from fluxexp.config.file_hashes import file_stamp
from fluxexp.data.lines import Lines
from fluxexp.data.openai_batch import RequestError, as_row, is_request
from fluxexp.data.row import Row, RowCallback, Rows, drop_missing
from fluxexp.errors import ConfigError, Problem, SampleError

EXTENSIONS = (".csv", ".jsonl", ".parquet")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_GONE = "does not exist any more: the file changed after it was opened; start the run again"
_CHANGED = "changed after it was opened; start the run again, and it makes what is missing from the new table"
_NOT_UTF8 = "is not UTF-8; save the file as UTF-8"


def open_rows(path: Path, on_row: RowCallback, further: Sequence[str] = ()) -> Rows:
    """Open the table at `path`, and call `on_row` for each row. `further` names columns besides `USED_COLUMNS`.

    Raises:
        ConfigError: the file is not a readable table, or it is a .parquet file and pyarrow is not installed.
    """
    try:
        match path.suffix.lower():
            case ".csv":
                return CsvRows(path, on_row)
            case ".jsonl":
                return JsonRows(path, on_row)
            case ".txt":
                return TextRows(path, on_row)
            case ".parquet":
                return _parquet_rows(path, on_row, further)
    except OSError as error:
        raise ConfigError(Problem("dataset.path", f"cannot be read ({error})", str(path))) from None
    hint = f"use one of these file types: {', '.join(EXTENSIONS)}"
    raise ConfigError(Problem("dataset.path", "is not a supported table", str(path), hint))


class _RowError(ValueError):
    """Describes the problem of a row."""


class _FileRows(ABC):
    """Rows that are found by their byte offsets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = array("Q")
        self._stamp = file_stamp(path.stat())
        self.num_skipped = 0

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        try:
            with Lines(self._path, self._offsets[index]) as lines:
                if lines.stamp != self._stamp:  # another row may be at the offset
                    raise _RowError(_CHANGED)
                return self._read(lines)
        except (_RowError, OSError) as error:
            raise SampleError(f"{self._path}, row {index + 1}: {error}") from None

    @abstractmethod
    def _read(self, lines: Lines) -> Row:
        """Parse the first row of `lines`. Raises a _RowError if that is not possible."""


class CsvRows(_FileRows):
    """A .csv file in UTF-8 with a header. Quoted values can contain line breaks. Rows without values are skipped."""

    def __init__(self, path: Path, on_row: RowCallback) -> None:
        super().__init__(path)
        with Lines(path) as lines:
            self._delimiter = _delimiter(path)
            reader = csv.reader(lines, delimiter=self._delimiter)
            try:
                self.columns = next((row for row in reader if not _is_blank(row)), [])
                self._check_header(lines)
                self._scan(lines, reader, on_row)
            except csv.Error as error:
                raise self._broken("is not UTF-8" if lines.damaged else f"cannot be read ({error})") from None

    def _check_header(self, lines: Lines) -> None:
        if lines.damaged:
            raise self._broken("is not UTF-8")
        twice = next((name for name in self.columns if name and self.columns.count(name) > 1), None)
        if twice is not None:
            hint = "rename one of them"
            raise ConfigError(Problem("dataset.path", f"has two columns {twice!r}", str(self._path), hint))

    def _scan(self, lines: Lines, reader: Iterator[list[str]], on_row: RowCallback) -> None:
        start = lines.offset
        for values in reader:
            if _is_blank(values):
                self.num_skipped += len(values) > 1
            else:
                self._offsets.append(start)
                if lines.ended:  # The parser reads past the end of the file only inside an open quote.
                    raise self._broken("opens a quote that is never closed")
                try:
                    row = self._row(values, lines)
                except _RowError:
                    on_row(None)
                else:
                    on_row(row)
            start = lines.offset
            lines.damaged = False

    def _read(self, lines: Lines) -> Row:
        values = next(csv.reader(lines, delimiter=self._delimiter), None)
        if values is None:
            raise _RowError(_GONE)
        return self._row(values, lines)

    def _row(self, values: list[str], lines: Lines) -> Row:
        if lines.damaged:
            raise _RowError(_NOT_UTF8)
        if any(values[len(self.columns) :]):
            hint = "put values that contain commas into quotes"
            raise _RowError(f"has {len(values)} values for {len(self.columns)} columns; {hint}")
        return {name: value for name, value in zip(self.columns, values, strict=False) if value}

    def _broken(self, reason: str) -> ConfigError:
        where = f", in row {len(self._offsets)}" if self._offsets else ""
        hint = "save the file as comma-separated UTF-8, and close every quote"
        return ConfigError(Problem("dataset.path", f"{reason}{where}", str(self._path), hint))


class _LineRows(_FileRows):
    """One row per line. Blank lines are skipped."""

    def __init__(self, path: Path, on_row: RowCallback) -> None:
        super().__init__(path)
        columns: dict[str, None] = {}
        start = 0
        with Lines(path) as lines:
            for line in lines:
                if line.strip():
                    self._offsets.append(start)
                    try:
                        row = self._row(line, lines)
                    except _RowError:
                        on_row(None)
                    else:
                        if not row.keys() <= columns.keys():
                            columns.update(dict.fromkeys(row))
                        on_row(row)
                start = lines.offset
                lines.damaged = False
        self.columns = list(columns)

    def _read(self, lines: Lines) -> Row:
        line = next(iter(lines), None)
        if line is None:
            raise _RowError(_GONE)
        return self._row(line, lines)

    def _row(self, line: str, lines: Lines) -> Row:
        if lines.damaged:
            raise _RowError(_NOT_UTF8)
        return self._parse(line)

    @abstractmethod
    def _parse(self, line: str) -> Row:
        """Parse `line`. Raises a _RowError if that is not possible."""


class JsonRows(_LineRows):
    """A .jsonl file: one JSON object per line, or one request of OpenAI's batch API."""

    def _parse(self, line: str) -> Row:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise _RowError("is not a JSON object; write one object per line")
        if is_request(row):
            try:
                row = as_row(row)
            except RequestError as error:
                raise _RowError(str(error)) from None
        if "\\u" in line and _SURROGATE.search(line):
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise _RowError("contains half of a surrogate pair; write the whole pair, or the character") from None
        return drop_missing(row)


class TextRows(_LineRows):
    """A .txt file: one prompt per line."""

    def _parse(self, line: str) -> Row:
        return {"prompt": line.strip()}


def _is_blank(values: Sequence[str]) -> bool:
    return not any(value.strip() for value in values)


def _delimiter(path: Path) -> str:
    """The character between columns: a comma, unless the header has none. Then a semicolon or a tab, if it has one."""
    with Lines(path) as lines:
        header = next((line for line in lines if line.strip()), "")
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _parquet_rows(path: Path, on_row: RowCallback, further: Sequence[str]) -> Rows:
    try:
        from fluxexp.data.parquet import ParquetRows
    except ImportError:
        raise ConfigError(
            Problem(
                "dataset.path",
                "needs pyarrow, which is not installed",
                str(path),
                "pip install 'fluxexp[parquet]', or use .csv or .jsonl",
            )
        ) from None
    return ParquetRows(path, on_row, further)
