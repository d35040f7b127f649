"""Interfaces of table rows, for all file formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

PASS_COLUMNS = ("true_cfg_scale", "negative_prompt", "prompt_2")
"""The columns that say what the passes of a step read, beside `prompt`."""
USED_COLUMNS = (
    *("prompt", "image", "mask", "truth", "key", "size", "guidance", "lora", "lora_scale"),
    *PASS_COLUMNS,
)
FILES = ("image", "mask", "truth", "lora")
"""The columns with paths of files."""
Row = Mapping[str, Any]
RowCallback = Callable[[Row | None], None]
"""Called for each row, in order, while a table is opened. A row that cannot be parsed is None."""


class Rows(Protocol):
    """The rows of a table. Thread-safe."""

    num_skipped: int
    """Number of rows without any value, which do not count."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns. For a .jsonl file: all keys that have a value in at least one row."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """The row at `index`. Raises a SampleError if it cannot be parsed."""
        ...


def drop_missing(row: Mapping[str, Any]) -> Row:
    """`row` without missing values: null, NaN and empty text."""
    return {name: value for name, value in row.items() if value is not None and value != "" and value == value}
