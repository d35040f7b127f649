"""What a row of a table is, and what every kind of table offers. Knows no file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Row = Mapping[str, Any]
Visit = Callable[[Row | None], None]
"""Called once for each row, in order, while a table is opened; with None for a row that cannot be parsed."""


class Rows(Protocol):
    """A table's rows. Thread-safe."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns; of a .jsonl, the keys that any row has a value for."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """One row. SampleError if it cannot be parsed."""
        ...


def known(row: Mapping[str, Any]) -> Row:
    """`row` without its missing values: null, NaN and empty text."""
    return {name: value for name, value in row.items() if value is not None and value != "" and value == value}
