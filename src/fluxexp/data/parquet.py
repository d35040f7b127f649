"""Rows of a .parquet file. Only this module imports pyarrow, an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluxexp.data.row import USED_COLUMNS, Row, RowCallback, drop_missing
from fluxexp.errors import ConfigError, Problem

_CHUNK_ROWS = 10_000


class ParquetRows:
    """The columns that a dataset uses, in memory as an Arrow table. Other columns are not read."""

    num_skipped = 0

    def __init__(self, path: Path, on_row: RowCallback, further: Sequence[str] = ()) -> None:
        try:
            schema = pq.read_schema(path)
            self.columns: list[str] = list(schema.names)
            used = [name for name in (*USED_COLUMNS, *further) if name in self.columns]
            self._check_types(schema, used, path)
            self._table = pq.read_table(path, columns=used)
            for batch in self._table.to_batches(max_chunksize=_CHUNK_ROWS):
                for row in batch.to_pylist():
                    on_row(drop_missing(row))
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ConfigError(Problem("dataset.path", f"cannot be read ({error})", str(path))) from None

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> Row:
        return drop_missing(self._table.slice(index, 1).to_pylist()[0])

    @staticmethod
    def _check_types(schema: Any, used: list[str], path: Path) -> None:
        problems = [
            Problem(
                "dataset.path",
                f"has {schema.field(name).type} in column {name!r}",
                str(path),
                "use only text and numbers; write images to files, and their paths into the table",
            )
            for name in used
            if not _is_plain(schema.field(name).type)
        ]
        if problems:
            raise ConfigError(problems)


def _is_plain(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "integer", "floating", "boolean", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)
