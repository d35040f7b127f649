"""`dataset=table` and `dataset=prompts`: samples from the rows of a table, or from the lines of a text file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxexp.config.build import unknown_name
from fluxexp.config.schema import SIZE_MULTIPLE, PromptsDatasetConfig, TableDatasetConfig
from fluxexp.data.image_reading import picture_size
from fluxexp.data.keys import DuplicateKeyError, RowKeys, content_key
from fluxexp.data.pairing import SampleParts, read_sample
from fluxexp.data.paths import expanded
from fluxexp.data.row import Row, Rows
from fluxexp.data.rows import EXTENSIONS, open_rows
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample


class Table:
    """Samples with pictures. Relative paths count from the table's folder."""

    def __init__(self, config: TableDatasetConfig) -> None:
        self._config = config
        self._path = existing_file(config.path, EXTENSIONS)
        required = {"image": ""}
        if config.prompt is None:
            required["prompt"] = "; or give all rows one with dataset.prompt"
        if config.mask is None and not config.alpha_mask:
            required["mask"] = (
                "; or have masks drawn (dataset.mask=box|center|strokes|outpaint), "
                "or use transparency (dataset.alpha_mask=true)"
            )
        self._rows, keys = named_rows(self._path, required)
        self._keys = keys[: config.limit]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The row's `key`, else a hash of what the row says."""
        return self._keys[_checked(index, self._keys)]

    def identity(self, index: int) -> str:
        """A hash of what the row says."""
        return _identity(self._rows, index)

    def size(self, index: int) -> tuple[int, int] | None:
        """From the column `size`, else from the picture's header."""
        return _declared_size(self._rows, index) or self._measured_size(index)

    def load(self, index: int) -> Sample:
        """Read the pictures of row `index`."""
        key = self.key(index)
        where = f"{self._path}, row {index + 1}"
        row = self._rows[index]
        prompt = _text(row, "prompt", where)
        if prompt is None:
            prompt = self._config.prompt
        if prompt is None:
            raise SampleError(f"{where}: no prompt")
        image = self._file(row, "image", where)
        if image is None:
            raise SampleError(f"{where}: no image")
        parts = SampleParts(
            key=key,
            prompt=prompt,
            image=image,
            mask=self._file(row, "mask", where),
            truth=self._file(row, "truth", where),
            size=read_size(row.get("size"), where),
        )
        return read_sample(parts, alpha_mask=self._config.alpha_mask, mask_kind=self._config.mask)

    def _measured_size(self, index: int) -> tuple[int, int] | None:
        try:
            image = self._file(self._rows[index], "image", "")
        except SampleError:
            return None
        return None if image is None else picture_size(image)

    def _file(self, row: Row, column: str, where: str) -> Path | None:
        text = _text(row, column, where)
        return None if text is None else self._path.parent / expanded(text)


class Prompts:
    """Samples of a prompt alone: a .txt with one a line, or a table with a `prompt` column."""

    def __init__(self, config: PromptsDatasetConfig) -> None:
        self._path = existing_file(config.path, (".txt", *EXTENSIONS))
        self._rows, keys = named_rows(self._path, {"prompt": ""})
        self._keys = keys[: config.limit]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The row's `key`, else a hash of what the row says."""
        return self._keys[_checked(index, self._keys)]

    def identity(self, index: int) -> str:
        """A hash of what the row says."""
        return _identity(self._rows, index)

    def size(self, index: int) -> tuple[int, int] | None:
        """From the column `size`."""
        return _declared_size(self._rows, index)

    def load(self, index: int) -> Sample:
        """The prompt of row `index`."""
        key = self.key(index)
        where = f"{self._path}, row {index + 1}"
        row = self._rows[index]
        prompt = _text(row, "prompt", where)
        if prompt is None:
            raise SampleError(f"{where}: no prompt")
        return Sample(key=key, prompt=prompt, size=read_size(row.get("size"), where))


def existing_file(text: str, extensions: Sequence[str]) -> Path:
    """`dataset.path` as a file of one of `extensions`; ConfigError if it is none."""
    if not text:
        raise ConfigError(Problem("dataset.path", "is not set", hint="give dataset.path=FILE"))
    path = expanded(text)
    if not path.is_file():
        raise ConfigError(Problem("dataset.path", "is not a file", text, f"give a {' or '.join(extensions)}"))
    if path.suffix.lower() not in extensions:
        raise ConfigError(Problem("dataset.path", "is no table", text, f"read: {', '.join(extensions)}"))
    return path


def named_rows(path: Path, required: Mapping[str, str]) -> tuple[Rows, list[str]]:
    """The rows of a table, and a distinct key for each. `required` columns come with what else could be done.

    Raises:
        ConfigError: it cannot be read, is empty, lacks columns, or two rows say the same in their `key` column.
    """
    keys = RowKeys()
    try:
        rows = open_rows(path, keys.add)
    except DuplicateKeyError as error:
        hint = "keys name results: give each row its own, or leave the column out"
        raise ConfigError(Problem("dataset.path", str(error), str(path), hint)) from None
    if len(rows) == 0:
        raise ConfigError(Problem("dataset.path", "holds no rows", str(path), "give a row for each sample"))
    problems = [
        Problem(
            "dataset.path",
            f"has no column {name!r}",
            str(path),
            f"{unknown_name(name, rows.columns, 'columns')}{instead}",
        )
        for name, instead in required.items()
        if name not in rows.columns
    ]
    if problems:
        raise ConfigError(problems)
    return rows, keys.names


def _identity(rows: Rows, index: int) -> str:
    try:
        return content_key(rows[index])
    except SampleError:
        return ""


def read_size(value: Any, where: str) -> tuple[int, int] | None:
    """`WIDTHxHEIGHT`, or one number for a square, as (height, width).

    Raises:
        SampleError: it is neither, or no multiple of 16.
    """
    if value is None:
        return None
    # A column of numbers with gaps comes as 512.0 from pandas.
    match = re.fullmatch(r"\s*(\d{1,5})(?:\.0+|\s*[xX*×]\s*(\d{1,5}))?\s*", str(value))  # noqa: RUF001
    if match is None:
        raise SampleError(f"{where}: size {value!r} is not WIDTHxHEIGHT")
    width, height = int(match[1]), int(match[2] or match[1])
    if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE or not width or not height:
        raise SampleError(f"{where}: size {value!r} is no multiple of {SIZE_MULTIPLE}")
    return height, width


def _declared_size(rows: Any, index: int) -> tuple[int, int] | None:
    try:
        return read_size(rows[index].get("size"), "")
    except SampleError:
        return None


def _checked(index: int, keys: Sequence[str]) -> int:
    if not 0 <= index < len(keys):
        raise IndexError(index)
    return index


def _text(row: Row, column: str, where: str) -> str | None:
    """A value as text; SampleError for a list or a mapping."""
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, (str, int, float)):
        raise SampleError(f"{where}: {column} is a {type(value).__name__}, and must be text")
    return str(value)
