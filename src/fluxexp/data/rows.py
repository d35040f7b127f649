"""Rows of a table as mappings, read by number: .csv and .jsonl by byte offsets, .parquet by pyarrow.

Opening passes over the file once. What stays in memory is eight bytes a row (of .parquet, the columns as Arrow keeps
them); a row is parsed again when it is asked for.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fluxexp.errors import ConfigError, Problem, SampleError

Row = Mapping[str, Any]
EXTENSIONS = (".csv", ".jsonl", ".parquet")


class Rows(Protocol):
    """A table's rows. Thread-safe."""

    columns: Sequence[str]
    """Names of the columns; of a .jsonl, the keys of its first row."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row | None]:
        """All rows in order; None for one that cannot be parsed."""
        ...

    def __getitem__(self, index: int) -> Row:
        """One row. SampleError if it cannot be parsed."""
        ...


def open_rows(path: Path) -> Rows:
    """The rows of the table at `path`.

    Raises:
        ConfigError: it is no table that can be read, or pyarrow is not there for a .parquet.
    """
    try:
        match path.suffix.lower():
            case ".csv":
                return CsvRows(path)
            case ".jsonl":
                return JsonRows(path)
            case ".parquet":
                return _parquet_rows(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(Problem("dataset.path", f"cannot be read ({error})", str(path))) from None
    raise ConfigError(Problem("dataset.path", "is no table", str(path), f"read: {', '.join(EXTENSIONS)}"))


class _Lines:
    """Lines of a file as text, with the byte offset of the next one."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._stream = path.open("rb")
        self._stream.seek(start)
        self.offset = start

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            text = line.decode("utf-8-sig" if self.offset == 0 else "utf-8")
            self.offset += len(line)
            yield text

    def close(self) -> None:
        self._stream.close()


class CsvRows:
    """A .csv in UTF-8 with a header; values may hold quoted newlines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = _Lines(path)
        reader = csv.reader(lines)
        self.columns = next(reader, [])
        self._offsets = array("Q")
        start = lines.offset
        for row in reader:
            if row:
                self._offsets.append(start)
            start = lines.offset
        lines.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Row | None]:
        lines = _Lines(self._path)
        reader = csv.reader(lines)
        next(reader)
        yield from (self._row(row) for row in reader if row)
        lines.close()

    def __getitem__(self, index: int) -> Row:
        lines = _Lines(self._path, self._offsets[index])
        try:
            return self._row(next(csv.reader(lines)))
        finally:
            lines.close()

    def _row(self, values: list[str]) -> Row:
        return {name: value for name, value in zip(self.columns, values, strict=False) if value != ""}


class JsonRows:
    """A .jsonl: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = array("Q")
        lines = _Lines(path)
        start = 0
        first = ""
        for line in lines:
            if line.strip():
                first = first or line
                self._offsets.append(start)
            start = lines.offset
        lines.close()
        self.columns = list(self._parse(first) or {}) if first else []

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Row | None]:
        lines = _Lines(self._path)
        yield from (self._parse(line) for line in lines if line.strip())
        lines.close()

    def __getitem__(self, index: int) -> Row:
        lines = _Lines(self._path, self._offsets[index])
        try:
            row = self._parse(next(iter(lines)))
        finally:
            lines.close()
        if row is None:
            raise SampleError(f"{self._path}, row {index + 1}: not a JSON object")
        return row

    def _parse(self, line: str) -> Row | None:
        try:
            row = json.loads(line)
        except ValueError:
            return None
        return {k: v for k, v in row.items() if v is not None} if isinstance(row, dict) else None


def _parquet_rows(path: Path) -> Rows:
    try:
        from fluxexp.data.parquet import ParquetRows
    except ImportError:
        raise ConfigError(
            Problem("dataset.path", "needs pyarrow", str(path), "pip install 'fluxexp[parquet]', or use .csv or .jsonl")
        ) from None
    return ParquetRows(path)
