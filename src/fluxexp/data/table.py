"""`dataset=table` and `dataset=prompts`: samples from the rows of a table, or from the lines of a text file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxexp.config.build import unknown_name
from fluxexp.config.schema import SIZE_MULTIPLE, PromptsDataset, TableDataset
from fluxexp.data.keys import content_key, distinct
from fluxexp.data.pairing import Parts, read_sample
from fluxexp.data.rows import EXTENSIONS, Row, Rows, open_rows
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample

_IDENTITY = ("prompt", "image", "mask", "truth", "size")


class Table:
    """Samples with pictures. Relative paths count from the table's folder."""

    def __init__(self, config: TableDataset) -> None:
        self._config = config
        self._path = existing_file(config.path, EXTENSIONS)
        self._rows = open_rows(self._path)
        required = ["image"]
        if config.prompt is None:
            required.append("prompt")
        if config.mask is None and not config.alpha_mask:
            required.append("mask")
        require_columns(self._rows, required, self._path)
        self._keys = row_keys(self._rows, self._path)[: config.limit]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The row's `key`, else a hash of what the row says."""
        return self._keys[index]

    def load(self, index: int) -> Sample:
        """Read the pictures of row `index`."""
        where = f"{self._path}, row {index + 1}"
        row = self._rows[index]
        prompt = row.get("prompt", self._config.prompt)
        if prompt is None:
            raise SampleError(f"{where}: no prompt")
        image = self._file(row, "image")
        if image is None:
            raise SampleError(f"{where}: no image")
        parts = Parts(
            key=self._keys[index],
            prompt=str(prompt),
            image=image,
            mask=self._file(row, "mask"),
            truth=self._file(row, "truth"),
            size=read_size(row.get("size"), where),
        )
        return read_sample(parts, alpha_mask=self._config.alpha_mask, mask_kind=self._config.mask)

    def _file(self, row: Row, column: str) -> Path | None:
        text = row.get(column)
        return None if text is None else self._path.parent / str(text)


class Prompts:
    """Samples of a prompt alone: a .txt with one a line, or a table with a `prompt` column."""

    def __init__(self, config: PromptsDataset) -> None:
        self._path = existing_file(config.path, (".txt", *EXTENSIONS))
        if self._path.suffix.lower() == ".txt":
            lines = (line.strip() for line in self._path.read_text(encoding="utf-8").splitlines())
            self._rows: Sequence[Row] | Rows = [{"prompt": line} for line in lines if line]
            self._keys = list(distinct(content_key(row["prompt"]) for row in self._rows if row))
        else:
            self._rows = open_rows(self._path)
            require_columns(self._rows, ["prompt"], self._path)
            self._keys = row_keys(self._rows, self._path)
        if not self._keys:
            raise ConfigError(Problem("dataset.path", "holds no prompts", config.path))
        self._keys = self._keys[: config.limit]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The row's `key`, else a hash of the prompt."""
        return self._keys[index]

    def load(self, index: int) -> Sample:
        """The prompt of row `index`."""
        row = self._rows[index]
        where = f"{self._path}, row {index + 1}"
        if "prompt" not in row:
            raise SampleError(f"{where}: no prompt")
        return Sample(key=self._keys[index], prompt=str(row["prompt"]), size=read_size(row.get("size"), where))


def existing_file(text: str, extensions: Sequence[str]) -> Path:
    """`dataset.path` as a file of one of `extensions`; ConfigError if it is none."""
    if not text:
        raise ConfigError(Problem("dataset.path", "is not set", hint="give dataset.path=FILE"))
    path = Path(text).expanduser()
    if not path.is_file():
        raise ConfigError(Problem("dataset.path", "is not a file", text))
    if path.suffix.lower() not in extensions:
        raise ConfigError(Problem("dataset.path", "is no table", text, f"read: {', '.join(extensions)}"))
    return path


def require_columns(rows: Rows, required: Sequence[str], path: Path) -> None:
    """ConfigError for an empty table, or for each column that is not there."""
    if len(rows) == 0:
        raise ConfigError(Problem("dataset.path", "holds no rows", str(path)))
    missing = [name for name in required if name not in rows.columns]
    if missing:
        raise ConfigError(
            [
                Problem(
                    "dataset.path", f"has no column {name!r}", str(path), unknown_name(name, rows.columns, "columns")
                )
                for name in missing
            ]
        )


def row_keys(rows: Rows, path: Path) -> list[str]:
    """A distinct key for each row.

    Raises:
        ConfigError: two rows say the same in their `key` column.
    """
    if "key" not in rows.columns:
        return list(distinct(_content_key(row) for row in rows))
    keys: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        key = str(row["key"]) if row is not None and "key" in row else _content_key(row, number)
        if key in keys:
            hint = "keys name results: give each row its own, or leave the column out"
            raise ConfigError(
                Problem("dataset.path", f"has the key {key!r} in rows {keys[key]} and {number}", str(path), hint)
            )
        keys[key] = number
    return list(keys)


def _content_key(row: Row | None, number: int | None = None) -> str:
    return "unreadable" if row is None else content_key(*(row.get(name) for name in _IDENTITY), number)


def read_size(value: Any, where: str) -> tuple[int, int] | None:
    """`WIDTHxHEIGHT`, or one number for a square, as (height, width).

    Raises:
        SampleError: it is neither, or no multiple of 16.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+)(?:\s*[x*]\s*(\d+))?\s*", str(value))
    if match is None:
        raise SampleError(f"{where}: size {value!r} is not WIDTHxHEIGHT")
    width, height = int(match[1]), int(match[2] or match[1])
    if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE or not width or not height:
        raise SampleError(f"{where}: size {value!r} is no multiple of {SIZE_MULTIPLE}")
    return height, width
