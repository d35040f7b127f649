"""Rows of a table as mappings, read by number: .csv, .jsonl and .txt by byte offsets, .parquet by pyarrow.

Opening passes over the file once. What stays in memory is eight bytes a row (of .parquet, the columns as Arrow keeps
them); a row is parsed again when it is asked for. In all formats an empty value is a missing one.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from fluxexp.data.row import Row, Rows, Visit, known
from fluxexp.errors import ConfigError, Problem, SampleError

EXTENSIONS = (".csv", ".jsonl", ".parquet")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_rows(path: Path, visit: Visit) -> Rows:
    """The rows of the table at `path`, each shown to `visit` on the way.

    Raises:
        ConfigError: it is no table that can be read, or pyarrow is not there for a .parquet.
    """
    try:
        match path.suffix.lower():
            case ".csv":
                return CsvRows(path, visit)
            case ".jsonl":
                return JsonRows(path, visit)
            case ".txt":
                return TextRows(path, visit)
            case ".parquet":
                return _parquet_rows(path, visit)
    except OSError as error:
        raise ConfigError(Problem("dataset.path", f"cannot be read ({error})", str(path))) from None
    raise ConfigError(Problem("dataset.path", "is no table", str(path), f"read: {', '.join(EXTENSIONS)}"))


class _RowError(ValueError):
    """Says what is wrong with a row."""


class _Lines:
    """Lines of a file as text, from byte `start` on.

    `offset` is that of the next line. `damaged` is set by a line that is not UTF-8. `ended` is set by asking for more
    lines than there are.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self._stream = path.open("rb")
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


class _FileRows(ABC):
    """Rows found by their byte offsets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = array("Q")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Row:
        try:
            with _Lines(self._path, self._offsets[index]) as lines:
                return self._read(lines)
        except (_RowError, OSError) as error:
            raise SampleError(f"{self._path}, row {index + 1}: {error}") from None

    @abstractmethod
    def _read(self, lines: _Lines) -> Row:
        """The first row of `lines`, or _RowError."""


class CsvRows(_FileRows):
    """A .csv in UTF-8 with a header; values may hold quoted newlines."""

    def __init__(self, path: Path, visit: Visit) -> None:
        super().__init__(path)
        with _Lines(path) as lines:
            reader = csv.reader(lines)
            try:
                self.columns = next((row for row in reader if not _is_blank(row)), [])
                self._check_header(lines)
                self._scan(lines, reader, visit)
            except csv.Error as error:
                raise self._broken(f"cannot be read ({error})") from None

    def _check_header(self, lines: _Lines) -> None:
        if lines.damaged:
            raise self._broken("is not UTF-8")
        twice = next((name for name in self.columns if name and self.columns.count(name) > 1), None)
        if twice is not None:
            hint = "give each column a name of its own"
            raise ConfigError(Problem("dataset.path", f"has two columns {twice!r}", str(self._path), hint))

    def _scan(self, lines: _Lines, reader: Iterator[list[str]], visit: Visit) -> None:
        start = lines.offset
        for values in reader:
            if not _is_blank(values):
                self._offsets.append(start)
                if lines.ended:  # A row ends with its line, unless it waits for a quote.
                    raise self._broken("opens a quote that is never closed")
                try:
                    row = self._row(values, lines)
                except _RowError:
                    visit(None)
                else:
                    visit(row)
            start = lines.offset
            lines.damaged = False

    def _read(self, lines: _Lines) -> Row:
        values = next(csv.reader(lines), None)
        if values is None:
            raise _RowError("not there any more")
        return self._row(values, lines)

    def _row(self, values: list[str], lines: _Lines) -> Row:
        if lines.damaged:
            raise _RowError("not UTF-8")
        if any(values[len(self.columns) :]):
            hint = "put a value that has commas into quotes"
            raise _RowError(f"has {len(values)} values for {len(self.columns)} columns; {hint}")
        return {name: value for name, value in zip(self.columns, values, strict=False) if value}

    def _broken(self, reason: str) -> ConfigError:
        where = f", in row {len(self._offsets)}" if self._offsets else ""
        hint = "save it as comma-separated UTF-8, with every quote closed"
        return ConfigError(Problem("dataset.path", f"{reason}{where}", str(self._path), hint))


class _LineRows(_FileRows):
    """One row a line; blank lines are passed over."""

    def __init__(self, path: Path, visit: Visit) -> None:
        super().__init__(path)
        columns: dict[str, None] = {}
        start = 0
        with _Lines(path) as lines:
            for line in lines:
                if line.strip():
                    self._offsets.append(start)
                    try:
                        row = self._row(line, lines)
                    except _RowError:
                        visit(None)
                    else:
                        if not row.keys() <= columns.keys():
                            columns.update(dict.fromkeys(row))
                        visit(row)
                start = lines.offset
                lines.damaged = False
        self.columns = list(columns)

    def _read(self, lines: _Lines) -> Row:
        line = next(iter(lines), None)
        if line is None:
            raise _RowError("not there any more")
        return self._row(line, lines)

    def _row(self, line: str, lines: _Lines) -> Row:
        if lines.damaged:
            raise _RowError("not UTF-8")
        return self._parse(line)

    @abstractmethod
    def _parse(self, line: str) -> Row:
        """The row that `line` says, or _RowError."""


class JsonRows(_LineRows):
    """A .jsonl: one JSON object a line."""

    def _parse(self, line: str) -> Row:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise _RowError("not a JSON object")
        if "\\u" in line and _SURROGATE.search(line):
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise _RowError("holds half of a surrogate pair, which is no character") from None
        return known(row)


class TextRows(_LineRows):
    """A .txt: one prompt a line."""

    def _parse(self, line: str) -> Row:
        return {"prompt": line.strip()}


def _is_blank(values: Sequence[str]) -> bool:
    return not values or (len(values) == 1 and not values[0].strip())


def _parquet_rows(path: Path, visit: Visit) -> Rows:
    try:
        from fluxexp.data.parquet import ParquetRows
    except ImportError:
        raise ConfigError(
            Problem("dataset.path", "needs pyarrow", str(path), "pip install 'fluxexp[parquet]', or use .csv or .jsonl")
        ) from None
    return ParquetRows(path, visit)
