"""Rows of a .parquet file. Only this module imports pyarrow, an optional dependency."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluxexp.config.file_hashes import file_stamp
from fluxexp.data.row import USED_COLUMNS, Row, RowCallback, drop_missing
from fluxexp.errors import ConfigError, Problem, SampleError

_CHUNK_ROWS = 10_000
MEMORY_BYTES = 256 << 20
"""The used columns of a larger file stay on disk: a row group is decoded when one of its rows is used."""
_GROUPS = 4
"""Number of decoded row groups that are kept. A writer makes groups of about a million rows, or 128 MB."""


class ParquetRows:
    """The columns that a dataset uses. Other columns are not read. Thread-safe."""

    num_skipped = 0

    def __init__(self, path: Path, on_row: RowCallback, further: Sequence[str] = ()) -> None:
        try:
            schema = pq.read_schema(path)
            self.columns: list[str] = list(schema.names)
            used = [name for name in (*USED_COLUMNS, *further) if name in self.columns]
            self._check_types(schema, used, path)
            self._groups = _RowGroups(path, used)
            is_small = self._groups.num_bytes <= MEMORY_BYTES
            kept = []
            for batch in self._groups.batches():
                for row in batch.to_pylist():
                    on_row(drop_missing(row))
                if is_small:
                    kept.append(batch)
            self._table = pa.Table.from_batches(kept, self._groups.schema) if is_small else None
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ConfigError(Problem("dataset.path", f"cannot be read ({error})", str(path))) from None

    def __len__(self) -> int:
        return self._groups.num_rows

    def __getitem__(self, index: int) -> Row:
        if self._table is not None:
            return drop_missing(self._table.slice(index, 1).to_pylist()[0])
        return drop_missing(self._groups.row(index))

    @staticmethod
    def _check_types(schema: Any, used: list[str], path: Path) -> None:
        problems = [
            Problem(
                "dataset.path",
                f"has {schema.field(name).type} in column {name!r}",
                str(path),
                "use only text and numbers here; dataset=hub reads images in parquet",
            )
            for name in used
            if not _is_plain(schema.field(name).type)
        ]
        if problems:
            raise ConfigError(problems)


class _RowGroups:
    """A file whose row groups are decoded when they are used."""

    def __init__(self, path: Path, used: Sequence[str]) -> None:
        self._path = path
        self._used = list(used)
        self._file = pq.ParquetFile(path, pre_buffer=False)
        self._stamp = file_stamp(path.stat())
        facts = self._file.metadata
        groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
        self._ends = list(accumulate(group.num_rows for group in groups))
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self.num_rows = int(facts.num_rows)
        self.num_bytes = sum(
            column.total_uncompressed_size
            for group in groups
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema.partition(".")[0] in self._used
        )
        """Of the used columns, decoded."""
        self.schema = pa.schema([self._file.schema_arrow.field(name) for name in self._used])

    def batches(self) -> Iterator[Any]:
        """All rows, some thousands at a time."""
        return self._file.iter_batches(_CHUNK_ROWS, columns=self._used)  # type: ignore[no-any-return]

    def row(self, index: int) -> dict[str, Any]:
        """One row. Raises a SampleError if the file has changed or cannot be read."""
        if not 0 <= index < self.num_rows:
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        try:
            group = self._group(number)
        except (pa.ArrowException, OSError) as error:
            raise SampleError(f"{self._path}, row {index + 1}: cannot be read ({error})") from error
        row: dict[str, Any] = group.slice(index - start, 1).to_pylist()[0]
        return row

    def _group(self, number: int) -> Any:
        with self._lock:
            if number not in self._kept:
                if file_stamp(self._path.stat()) != self._stamp:
                    raise SampleError(f"{self._path}: changed after it was opened; start the run again")
                self._kept[number] = self._file.read_row_group(number, columns=self._used)
            self._kept.move_to_end(number)
            while len(self._kept) > _GROUPS:
                self._kept.popitem(last=False)
            return self._kept[number]


def _is_plain(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "integer", "floating", "boolean", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)
