"""Opens a table, and collects in one pass what must be known of its rows before any is used."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from math import isnan, nan
from pathlib import Path
from typing import Any

from fluxexp.config.build import unknown_name
from fluxexp.data.dataset import SamplingColumns
from fluxexp.data.file_access import AllowedFolders
from fluxexp.data.keys import DuplicateKeyError, FirstKeys, RowKeys
from fluxexp.data.lora_columns import sample_lora
from fluxexp.data.notes import note
from fluxexp.data.row import FILES, USED_COLUMNS, Row, Rows
from fluxexp.data.rows import open_rows
from fluxexp.data.table_place import TablePlace
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import SampleLora

ROWS = ("row", "rows")
_NAMED = 100
"""Number of files outside of the dataset that are remembered by name."""
_RANGES = {"guidance": (0.0, 100.0), "true_cfg_scale": (1.0, 100.0)}
"""Columns with numbers: the lowest and the highest."""


class Numbers:
    """Numbers of some rows, by index: 8 bytes for each row up to the last one that has a number."""

    def __init__(self) -> None:
        self._values = array("d")

    def put(self, index: int, number: float) -> None:
        """Set the number of a row behind all rows before it."""
        self._values.extend(repeat(nan, index - len(self._values)))
        self._values.append(number)

    def get(self, index: int) -> float | None:
        """The number of a row, if it has one."""
        value = self._values[index] if index < len(self._values) else nan
        return None if isnan(value) else value

    def values(self) -> Iterator[float]:
        """All numbers."""
        return (value for value in self._values if not isnan(value))


class TableContents:
    """A table with a unique key for each row, and counts of what its rows have.

    Args:
        place: where the table is.
        required: names of required columns; the values are texts that end the error message if the column is missing.
        limit: only this many rows count, from the first on. None: all.
        allowed: the folders whose files rows may name.
        pictures: names of the columns with images, the first of which has the image that each sample needs.

    Raises:
        ConfigError: the table cannot be read, has no rows, or has no column of a required name, or a key occurs twice.
    """

    def __init__(
        self,
        place: TablePlace,
        required: Mapping[str, str],
        limit: int | None,
        allowed: AllowedFolders | None = None,
        pictures: Sequence[str] = ("image",),
    ) -> None:
        self.filled: Counter[str] = Counter()
        """Number of rows with a value, by column."""
        self.num_outside = 0
        """Number of rows with a file outside of the allowed folders."""
        self.outside: list[str] = []
        """The first of these files."""
        self.guidance = Numbers()
        """By the index of the row."""
        self.true_cfg_scale = Numbers()
        """By the index of the row."""
        self.loras: dict[int, SampleLora] = {}
        """By the index of the row."""
        further = [name for name in pictures if name not in USED_COLUMNS]
        self._all_keys = RowKeys(further)
        self._files = (*FILES, *further)
        self._limit = limit
        self._place = place
        self._allowed = allowed
        try:
            self.rows: Rows = open_rows(place.path, self._add, further)
            self._all_keys.finish()
        except DuplicateKeyError as error:
            hint = "keys name results, so give each row its own key, or remove the column"
            raise ConfigError(Problem("dataset.path", str(error), place.name, hint)) from None
        if len(self.rows) == 0:
            raise ConfigError(Problem("dataset.path", "contains no rows", place.name, "add a row for each sample"))
        problems = [
            Problem(
                "dataset.path",
                f"has no column {name!r}",
                place.name,
                f"{unknown_name(name, self.rows.columns, 'columns')}{alternative}",
            )
            for name, alternative in required.items()
            if name not in self.rows.columns
        ]
        if problems:
            raise ConfigError(problems)
        self.keys = FirstKeys(self._all_keys, limit)

    def identity(self, index: int) -> str:
        """Hash of the content of a row when the table was opened; empty for a row that cannot be read."""
        return self._all_keys.identity(index)

    @property
    def sampling_columns(self) -> SamplingColumns:
        """What rows say of their own passes."""
        number = sum(1 for _ in self.true_cfg_scale.values())
        num_above = sum(scale > 1 for scale in self.true_cfg_scale.values())
        return SamplingColumns(self.filled["negative_prompt"], number, num_above)

    def notes(self, used: Sequence[str]) -> list[str]:
        """What was skipped, and the columns that are not `used`."""
        unused = [name for name in self.rows.columns if name and name not in used]
        return [
            *note(self.rows.num_skipped, ROWS, "without any value, which do not count"),
            *note(len(unused), ("column", "columns"), "not used", unused),
        ]

    def lacking(self, column: str, what: str) -> list[str]:
        """The sentence about rows without a value in `column`."""
        return note(len(self.keys) - self.filled[column], ROWS, what)

    def _add(self, row: Row | None) -> None:
        index = len(self._all_keys)
        self._all_keys.add(row)
        if row is None or (self._limit is not None and index >= self._limit):
            return
        self.filled.update(row.keys())
        if self._allowed is not None:
            self._note_outside(row, self._allowed)
        for column, values in (("guidance", self.guidance), ("true_cfg_scale", self.true_cfg_scale)):
            if (number := _number(column, row.get(column))) is not None:
                values.put(index, number)
        if (lora := sample_lora(row, self._place.path.parent)) is not None:
            self.loras[index] = lora

    def _note_outside(self, row: Row, allowed: AllowedFolders) -> None:
        files = [self._place.named(name) for column in self._files if isinstance(name := row.get(column), str)]
        try:
            outside = next((file for file in files if file is not None and not _is_inside(file, allowed)), None)
        except ValueError:
            return  # a null character: the sample fails when it is loaded
        if outside is not None:
            self.num_outside += 1
            if len(self.outside) < _NAMED:
                self.outside.append(str(outside))


def _is_inside(file: Path | str, allowed: AllowedFolders) -> bool:
    return allowed.contain_url(file) if isinstance(file, str) else allowed.contain_by_name(file)


def require_numbers(row: Row, where: str) -> None:
    """Check the columns with numbers. Raises a SampleError if a value is not a number of the column's range."""
    for column, (low, high) in _RANGES.items():
        value = row.get(column)
        if value is not None and _number(column, value) is None:
            raise SampleError(f"{where}: {column} {value!r} is not a number from {low:g} to {high:g}")


def _number(column: str, value: Any) -> float | None:
    """A value of a column with numbers; None if it is missing or not allowed."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # JSON has integers of any size
        return None
    low, high = _RANGES[column]
    return number if low <= number <= high else None
