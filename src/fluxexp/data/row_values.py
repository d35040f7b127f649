"""What `Table` and `Prompts` read from the columns of a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fluxexp.config.schema import SIZE_MULTIPLE
from fluxexp.data.dataset import SamplingColumns
from fluxexp.data.row import Row
from fluxexp.data.table_contents import TableContents
from fluxexp.errors import SampleError
from fluxexp.records import SampleLora


class RowSettings:
    """The sampling parameters and LoRAs that rows of a table ask for."""

    _contents: TableContents

    def guidance(self, index: int) -> float | None:
        """Value of the column `guidance`."""
        return self._contents.guidance.get(index)

    def true_cfg_scale(self, index: int) -> float | None:
        """Value of the column `true_cfg_scale`."""
        return self._contents.true_cfg_scale.get(index)

    @property
    def sampling_columns(self) -> SamplingColumns:
        """What its rows say of their own passes."""
        return self._contents.sampling_columns

    @property
    def has_loras(self) -> bool:
        """Whether a row has a LoRA."""
        return bool(self._contents.loras)

    def lora(self, index: int) -> SampleLora | None:
        """Values of the columns `lora` and `lora_scale`."""
        return self._contents.loras.get(index)


def read_size(value: Any, where: str) -> tuple[int, int] | None:
    """Parse `WIDTHxHEIGHT`, or one number for a square. Returns (height, width), or None for None.

    Raises:
        SampleError: `value` has another form, or a side is not a multiple of 16.
    """
    if value is None:
        return None
    # pandas writes a column of numbers with missing values as floats, such as 512.0.
    match = re.fullmatch(r"\s*(\d{1,5})(?:\.0+|\s*[xX*×]\s*(\d{1,5}))?\s*", str(value))  # noqa: RUF001
    if match is None:
        raise SampleError(f"{where}: size {value!r} is not WIDTHxHEIGHT; write it like 768x512")
    width, height = int(match[1]), int(match[2] or match[1])
    if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE or not width or not height:
        raise SampleError(f"{where}: size {value!r} is not allowed; use multiples of {SIZE_MULTIPLE}")
    return height, width


def declared_size(rows: Any, index: int) -> tuple[int, int] | None:
    """Height and width from the column `size` of a row. None if it is empty or not valid."""
    try:
        return read_size(rows[index].get("size"), "")
    except SampleError:
        return None


def checked(index: int, keys: Sequence[str]) -> int:
    """Return `index`. Raises an IndexError if there is no such row."""
    if not 0 <= index < len(keys):
        raise IndexError(index)
    return index


def text_of(row: Row, column: str, where: str) -> str | None:
    """The value of `column` as text, or None. Raises a SampleError if it is a list or a mapping."""
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, (str, int, float)):
        raise SampleError(f"{where}: {column} is a {type(value).__name__}, but must be text")
    return str(value)
