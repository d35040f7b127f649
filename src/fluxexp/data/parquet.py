"""Rows of a .parquet file. The one module that knows pyarrow, an extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fluxexp.data.rows import Row
from fluxexp.errors import ConfigError, Problem

USED = ("prompt", "image", "mask", "truth", "key", "size")


class ParquetRows:
    """The columns that a dataset uses, in memory as Arrow keeps them; pictures inside a table are not read."""

    def __init__(self, path: Path) -> None:
        try:
            self.columns = list(pq.read_schema(path).names)
            self._table = pq.read_table(path, columns=[name for name in USED if name in self.columns])
        except pa.ArrowException as error:
            raise ConfigError(Problem("dataset.path", f"cannot be read ({error})", str(path))) from None

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[Row | None]:
        for batch in self._table.to_batches(max_chunksize=10_000):
            yield from map(_known, batch.to_pylist())

    def __getitem__(self, index: int) -> Row:
        return _known(self._table.slice(index, 1).to_pylist()[0])


def _known(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}
