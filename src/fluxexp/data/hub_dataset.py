"""`dataset=hub`: samples from datasets that the library `datasets` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxexp.config.schema import HubDatasetConfig
from fluxexp.data.dataset import SamplingColumns
from fluxexp.data.file_access import AllowedFolders
from fluxexp.data.file_content import files_content
from fluxexp.data.hub_columns import load_rows, require_columns
from fluxexp.data.hub_revision import require_datasets
from fluxexp.data.image_reading import picture_size
from fluxexp.data.key_hashes import first_repeated
from fluxexp.data.notes import note
from fluxexp.data.packed_texts import PackedTexts
from fluxexp.data.pairing import SampleParts, read_sample
from fluxexp.data.paths import expanded, is_url
from fluxexp.data.row_values import text_of
from fluxexp.data.sources import BytesSource, File, RemoteFile
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample, content_hash

_ROWS = ("row", "rows")
_BATCH_ROWS = 10_000
_DIGEST_BYTES = 8


class HubDataset:
    """Rows of a split. The library keeps them in memory-mapped files, so that their number does not need memory.

    Opening reads the columns with texts. Pictures are read when their sample is.
    """

    def __init__(self, config: HubDatasetConfig) -> None:
        if not config.path:
            raise ConfigError(Problem("dataset.path", "is not set", hint="set a hub id, a folder or a .parquet file"))
        require_datasets(config.path)
        self._config = config
        rows, own = load_rows(config)
        self._rows, self._pictures = require_columns(config, rows)
        self._allowed = AllowedFolders(own, config.allowed_folders)
        self._length = min(len(rows), config.limit or len(rows))
        if not self._length:
            hint = "use another split or another dataset"
            raise ConfigError(Problem("dataset.path", f"has no rows in the split {config.split}", config.path, hint))
        self._keys = None if config.columns.key is None else PackedTexts()
        self._digests = bytearray()
        self._num_without_prompt = 0
        self._read_texts()
        self.notes = self._found()

    def __len__(self) -> int:
        return self._length

    def key(self, index: int) -> str:
        """Value of the key column, else `row-` and the number of the row, from 0 on."""
        if not 0 <= index < self._length:
            raise IndexError(index)
        return f"row-{index}" if self._keys is None else self._keys[index]

    def identity(self, index: int) -> str:
        """A hash of the texts of a row."""
        return self._digests[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES].hex()

    def inputs(self, index: int) -> str | None:
        """A hash of the bytes of the image, its mask, control image and reference."""
        config = self._config
        names = [config.columns.image, *([config.columns.mask] if config.has_masks else [])]
        names += [config.controls, config.references]
        return self._content([name for name in names if name is not None], index)

    def known_inputs(self, index: int) -> None:
        """None: it would read all bytes of the dataset. The commit of a hub id names them."""

    def truth(self, index: int) -> None:
        """None, for the same reason."""

    def guidance(self, index: int) -> None:
        """None: rows have no sampling parameters."""

    def true_cfg_scale(self, index: int) -> None:
        """None, for the same reason."""

    has_loras = False

    def lora(self, index: int) -> None:
        """None: no row has a LoRA of its own."""

    @property
    def sampling_columns(self) -> SamplingColumns:
        """All rows have a negative prompt if there is a column for it."""
        return SamplingColumns(num_negative_prompts=0 if self._config.columns.negative_prompt is None else self._length)

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the header of the image."""
        name = self._config.columns.image
        try:
            file = None if name is None else self._file(self._row(index), name, self._where(index))
        except SampleError:
            return None
        return None if file is None or isinstance(file, RemoteFile) else picture_size(file)

    def load(self, index: int) -> Sample:
        """Read the texts and the pictures of a row."""
        config, columns, where = self._config, self._config.columns, self._where(index)
        key, row = self.key(index), self._row(index)
        prompt = None if columns.prompt is None else text_of(row, columns.prompt, where)
        prompt = prompt or config.prompt
        if prompt is None:
            raise SampleError(f"{where}: has no prompt; set dataset.columns.prompt or dataset.prompt")
        negative = None if columns.negative_prompt is None else text_of(row, columns.negative_prompt, where)
        if columns.image is None:
            return Sample(key=key, prompt=prompt, negative_prompt=negative)
        image = self._file(row, columns.image, where)
        if image is None:
            raise SampleError(f"{where}: has no image in the column {columns.image!r}")
        parts = SampleParts(
            key=key,
            prompt=prompt,
            negative_prompt=negative,
            image=image,
            mask=self._file(row, columns.mask, where) if config.has_masks else None,
            truth=self._file(row, columns.truth, where),
            control=self._needed(row, config.controls, where),
            reference=self._needed(row, config.references, where),
        )
        return read_sample(parts, config, self._allowed)

    def _row(self, index: int) -> Mapping[str, Any]:
        try:
            row: Mapping[str, Any] = self._pictures[index]
        except Exception as error:  # of pyarrow and datasets, of many types
            raise SampleError(f"{self._where(index)}: cannot be read ({error})") from error
        return row

    def _where(self, index: int) -> str:
        return f"{self._config.path}, {self._config.split}, row {index}"

    def _needed(self, row: Mapping[str, Any], name: str | None, where: str) -> File | None:
        file = self._file(row, name, where)
        if name is not None and file is None:
            raise SampleError(f"{where}: has no picture in the column {name!r}")
        return file

    def _file(self, row: Mapping[str, Any], name: str | None, where: str) -> File | None:
        """The picture in a column: bytes, or the name of a file that the library found beside the data."""
        value = None if name is None else row[name]
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if value is None:
            return None
        if isinstance(value, bytes):
            return BytesSource(f"{where}, {name}", value)
        return RemoteFile(str(value)) if is_url(str(value)) else self._beside(str(value))

    def _beside(self, path: str) -> Path:
        folder = expanded(self._config.path)
        return (folder if folder.is_dir() else folder.parent) / path

    def _content(self, names: list[str], index: int) -> str | None:
        try:
            row = self._row(index)
            files = [self._file(row, name, self._where(index)) for name in names]
            for file in files:
                if isinstance(file, Path):
                    self._allowed.require(file)
                elif isinstance(file, RemoteFile):
                    self._allowed.require_url(file.url)
            return files_content(files) if files else None
        except SampleError:
            return None

    def _read_texts(self) -> None:
        """Read keys, and hash the other texts of all rows."""
        columns = self._config.columns
        texts = [name for name in (columns.prompt, columns.negative_prompt) if name is not None]
        done = 0
        for batch in self._rows.iter(batch_size=_BATCH_ROWS):
            count = min(len(next(iter(batch.values()))), self._length - done) if batch else 0
            for number in range(count):
                values = [None if batch[name][number] is None else str(batch[name][number]) for name in texts]
                self._digests += bytes.fromhex(content_hash(values, 2 * _DIGEST_BYTES))
                self._num_without_prompt += columns.prompt is not None and not values[0]
                if self._keys is not None:
                    self._keys.append(self._given_key(batch[columns.key][number], done + number))
            done += count
            if done >= self._length:
                break
        found = None if self._keys is None else first_repeated(self._keys)
        if found is not None:
            what = f"has the value {self.key(found[1])!r} in rows {found[0]} and {found[1]}"
            hint = "keys name results, so name a column in which each row has its own value, or use null"
            raise ConfigError(Problem("dataset.columns.key", what, columns.key, hint))

    def _given_key(self, value: Any, index: int) -> str:
        if value is None or value == "":
            what, hint = f"has no value in row {index}", "keys name results, so each row needs one; or use null"
            raise ConfigError(Problem("dataset.columns.key", what, self._config.columns.key, hint))
        return str(value)

    def _found(self) -> list[str]:
        missing = self._length if self._config.columns.prompt is None else self._num_without_prompt
        return note(missing if self._config.prompt is None else 0, _ROWS, "without a prompt, which will fail")
