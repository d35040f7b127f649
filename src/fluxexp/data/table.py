"""`dataset=table` and `dataset=prompts`: samples from the rows of a table or the lines of a text file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxexp.config.build import unknown_name
from fluxexp.config.schema import SIZE_MULTIPLE, PromptsDatasetConfig, TableDatasetConfig
from fluxexp.data.file_content import files_content
from fluxexp.data.image_reading import picture_size
from fluxexp.data.keys import DuplicateKeyError, RowKeys, content_key
from fluxexp.data.pairing import SampleParts, read_sample
from fluxexp.data.paths import expanded
from fluxexp.data.row import Row, Rows
from fluxexp.data.rows import EXTENSIONS, open_rows
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample


class Table:
    """Samples with images. Relative paths start at the table's folder."""

    def __init__(self, config: TableDatasetConfig) -> None:
        self._config = config
        self._path = existing_file(config.path, EXTENSIONS)
        required = {"image": ""}
        if config.prompt is None:
            required["prompt"] = "; or set one prompt for all rows with dataset.prompt"
        if config.mask is None and not config.alpha_mask:
            required["mask"] = (
                "; or let fluxexp draw masks (dataset.mask=box|center|strokes|outpaint), "
                "or use transparency (dataset.alpha_mask=true)"
            )
        self._rows, keys = rows_with_keys(self._path, required)
        self._keys = keys[: config.limit]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Value of the column `key`, else a hash of the row's content."""
        return self._keys[_checked(index, self._keys)]

    def identity(self, index: int) -> str:
        """A hash of the row's content; empty if the row cannot be read."""
        return _identity(self._rows, index)

    def inputs(self, index: int) -> str | None:
        """A hash of the content of the image and of its mask."""
        columns = ("image",) if self._config.mask == "none" else ("image", "mask")
        try:
            return files_content([self._file(self._rows[index], column, "") for column in columns])
        except SampleError:
            return None

    def truth(self, index: int) -> str | None:
        """A hash of the content of the ground truth."""
        try:
            path = self._file(self._rows[index], "truth", "")
        except SampleError:
            return None
        return None if path is None else files_content([path])

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the column `size`, else from the header of the image file."""
        return _declared_size(self._rows, index) or self._measured_size(index)

    def load(self, index: int) -> Sample:
        """Read the images of row `index`."""
        key = self.key(index)
        where = f"{self._path}, row {index + 1}"
        row = self._rows[index]
        prompt = _text(row, "prompt", where)
        if prompt is None:
            prompt = self._config.prompt
        if prompt is None:
            raise SampleError(f"{where}: has no prompt; write one into the row, or set dataset.prompt")
        image = self._file(row, "image", where)
        if image is None:
            raise SampleError(f"{where}: has no image; write the path of an image into the column")
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
    """Samples with only a prompt, from a .txt file with one prompt per line or a table with the column `prompt`."""

    def __init__(self, config: PromptsDatasetConfig) -> None:
        self._path = existing_file(config.path, (".txt", *EXTENSIONS))
        self._rows, keys = rows_with_keys(self._path, {"prompt": ""})
        self._keys = keys[: config.limit]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Value of the column `key`, else a hash of the row's content."""
        return self._keys[_checked(index, self._keys)]

    def identity(self, index: int) -> str:
        """A hash of the row's content; empty if the row cannot be read."""
        return _identity(self._rows, index)

    def inputs(self, index: int) -> None:
        """None, because a prompt has no files."""

    def truth(self, index: int) -> None:
        """None, because a prompt has no files."""

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the column `size`."""
        return _declared_size(self._rows, index)

    def load(self, index: int) -> Sample:
        """Read row `index`."""
        key = self.key(index)
        where = f"{self._path}, row {index + 1}"
        row = self._rows[index]
        prompt = _text(row, "prompt", where)
        if prompt is None:
            raise SampleError(f"{where}: has no prompt; write one into the row")
        return Sample(key=key, prompt=prompt, size=read_size(row.get("size"), where))


def existing_file(text: str, extensions: Sequence[str]) -> Path:
    """The path `text` of dataset.path. Raises a ConfigError if it is not a file with one of `extensions`."""
    if not text:
        raise ConfigError(Problem("dataset.path", "is not set", hint="set dataset.path=FILE"))
    path = expanded(text)
    if not path.is_file():
        raise ConfigError(Problem("dataset.path", "is not a file", text, f"set it to a {' or '.join(extensions)} file"))
    if path.suffix.lower() not in extensions:
        hint = f"use one of these file types: {', '.join(extensions)}"
        raise ConfigError(Problem("dataset.path", "is not a supported table", text, hint))
    return path


def rows_with_keys(path: Path, required: Mapping[str, str]) -> tuple[Rows, list[str]]:
    """The rows of a table, and a unique key for each row.

    Args:
        path: the file.
        required: names of required columns; the values are texts that end the error message if the column is missing.

    Raises:
        ConfigError: the table cannot be read, has no rows, or has no column of a required name, or a key occurs twice.
    """
    keys = RowKeys()
    try:
        rows = open_rows(path, keys.add)
    except DuplicateKeyError as error:
        hint = "keys name results, so give each row its own key, or remove the column"
        raise ConfigError(Problem("dataset.path", str(error), str(path), hint)) from None
    if len(rows) == 0:
        raise ConfigError(Problem("dataset.path", "contains no rows", str(path), "add a row for each sample"))
    problems = [
        Problem(
            "dataset.path",
            f"has no column {name!r}",
            str(path),
            f"{unknown_name(name, rows.columns, 'columns')}{alternative}",
        )
        for name, alternative in required.items()
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
    """The value of `column` as text, or None. Raises a SampleError if it is a list or a mapping."""
    value = row.get(column)
    if value is None:
        return None
    if not isinstance(value, (str, int, float)):
        raise SampleError(f"{where}: {column} is a {type(value).__name__}, but must be text")
    return str(value)
