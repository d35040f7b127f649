"""Parquet files, alone or as a dataset of Hugging Face. Only this module of the package imports pyarrow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fluxexp.errors import StorageError
from fluxexp.export.exported_rows import ExportedRow, ExportedRows, score_column
from fluxexp.export.target_directory import write_durably

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_BYTES = 512 << 20
"""A file with so many bytes of images and texts is complete."""
_GROUP_BYTES = 64 << 20
"""So many are in memory at once, and become one row group."""
_GROUP_ROWS = 10_000
_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("key", "run", "sample_key", "prompt", "prompt_2", "negative_prompt"), "string"),
    **dict.fromkeys(("model", "scheduler", "overrides"), "string"),
    **dict.fromkeys(("image_index", "seed", "steps", "height", "width"), "int64"),
    **dict.fromkeys(("guidance", "true_cfg_scale"), "float64"),
}
_OF_PART: Mapping[str, tuple[str, ...]] = {
    "prompts": ("prompt", "prompt_2", "negative_prompt"),
    "settings": ("seed", "steps", "guidance", "true_cfg_scale", "height", "width", "model", "scheduler", "overrides"),
}


def require_pyarrow() -> None:
    """Raise StorageError if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        text = "--to parquet and --to hf need pyarrow, which is not installed: pip install 'fluxexp[parquet]'"
        raise StorageError(text) from error


def write_parquet(rows: ExportedRows, folder: Path) -> int:
    """Write `part-NNNNN.parquet` into `folder`. Returns the number of rows."""
    num_rows = 0
    with _Files(folder, rows) as files:
        for row in rows.rows():
            files.add(row)
            num_rows += 1
    return num_rows


def write_hf(rows: ExportedRows, folder: Path) -> int:
    """Write what `datasets.load_dataset` opens: data/*.parquet and README.md. Returns the number of rows."""
    (folder / "data").mkdir()
    num_rows = write_parquet(rows, folder / "data")
    write_durably(folder / "README.md", _card(rows, num_rows).encode())
    return num_rows


def columns(rows: ExportedRows) -> dict[str, str]:
    """Types of the columns without the image, by name."""
    names = ["key", "run", "sample_key", "image_index"]
    names += [name for part, of_part in _OF_PART.items() if part in rows.parts for name in of_part]
    return {name: _TYPES[name] for name in names} | {score_column(name): "float64" for name in rows.metrics}


class _Files:
    """Parquet files with a limited size. As a context, closes the last one."""

    def __init__(self, folder: Path, rows: ExportedRows) -> None:
        self._folder = folder
        self._has_images = "images" in rows.parts
        self._columns = columns(rows)
        self._schema = _schema(self._columns, has_images=self._has_images)
        self._group: list[dict[str, Any]] = []
        self._group_bytes = self._file_bytes = self._num_files = 0
        self._writer: Any = None
        self._path = folder

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write_group()
        self._close()

    def add(self, row: ExportedRow) -> None:
        values = {name: row.values.get(name) for name in self._columns}
        if self._has_images:
            values["image"] = {"bytes": row.image, "path": f"{row.record.key}.{row.suffix}"}
        self._group.append(values)
        self._group_bytes += len(row.image or b"") + 500
        if self._group_bytes >= _GROUP_BYTES or len(self._group) >= _GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._group:
            return
        if self._writer is None:
            self._path = self._folder / f"part-{self._num_files:05d}.parquet"
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
            self._num_files += 1
        self._writer.write_table(pa.Table.from_pylist(self._group, self._schema))
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0
        if self._file_bytes >= _FILE_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
        self._writer, self._file_bytes = None, 0


def _schema(types: Mapping[str, str], *, has_images: bool) -> pa.Schema:
    """The schema, with the features of Hugging Face's datasets in its metadata, so that images are decoded."""
    import pyarrow as pa

    fields = [pa.field(name, getattr(pa, kind)()) for name, kind in types.items()]
    features: dict[str, Any] = {name: {"dtype": kind, "_type": "Value"} for name, kind in types.items()}
    if has_images:
        fields.append(pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
        features["image"] = {"_type": "Image"}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def _card(rows: ExportedRows, num_rows: int) -> str:
    """README.md of a dataset: its YAML says where the data is."""
    table = "\n".join(_table_lines(rows))
    return (
        "---\n"
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n"
        f"size_categories:\n- {_size_category(num_rows)}\n"
        "tags:\n- image\n- synthetic\n- fluxexp\n"
        "---\n"
        f"# Images of {', '.join(run.name for run in rows.runs)}\n\n"
        f"{num_rows} images, made and exported with fluxexp.\n\n{table}\n"
    )


def _table_lines(rows: ExportedRows) -> Iterator[str]:
    yield "| column | type |"
    yield "| --- | --- |"
    for name, kind in columns(rows).items():
        yield f"| `{name}` | {kind} |"
    if "images" in rows.parts:
        yield "| `image` | image |"


def _size_category(num_rows: int) -> str:
    """As Hugging Face names sizes of datasets."""
    limits = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
    return next((name for limit, name in limits.items() if num_rows < limit), "10M<n<100M")
