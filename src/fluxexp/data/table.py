"""`dataset=table`: samples with images, from the rows of a table."""

from __future__ import annotations

from pathlib import Path

from fluxexp.config.schema import TableDatasetConfig
from fluxexp.data.file_access import KEY, AllowedFolders, remedy
from fluxexp.data.file_content import files_content
from fluxexp.data.image_reading import picture_size
from fluxexp.data.lora_columns import lora_file, require_lora
from fluxexp.data.notes import note
from fluxexp.data.pairing import SampleParts, read_sample
from fluxexp.data.row import USED_COLUMNS, Row
from fluxexp.data.row_values import RowSettings, checked, declared_size, read_size, text_of
from fluxexp.data.rows import EXTENSIONS
from fluxexp.data.sources import File, RemoteFile, is_remote
from fluxexp.data.table_contents import ROWS, TableContents, require_numbers
from fluxexp.data.table_place import find_table
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample


class Table(RowSettings):
    """Samples with images. Relative paths start at the table's folder."""

    def __init__(self, config: TableDatasetConfig) -> None:
        self._config = config
        self._place = find_table(config.path, EXTENSIONS)
        self._columns = (config.image_column, *config.further_columns)
        _require_own_columns(config)
        required = dict.fromkeys(self._columns, "")
        if config.prompt is None:
            required["prompt"] = "; or set one prompt for all rows with dataset.prompt"
        if config.has_masks and config.mask is None and not config.alpha_mask:
            required["mask"] = (
                "; or let fluxexp draw masks (dataset.mask=box|center|strokes|outpaint), "
                "or use transparency (dataset.alpha_mask=true)"
            )
        self._allowed = AllowedFolders(self._place.own_folders, config.allowed_folders, self._place.own_urls)
        self._contents = TableContents(self._place, required, config.limit, self._allowed, self._columns)
        self._rows, self._keys = self._contents.rows, self._contents.keys
        outside = self._contents.outside
        if (number := self._contents.num_outside) == len(self._keys):
            what = f"names files outside of its folder in all {number} rows, for example {outside[0]}"
            raise ConfigError(Problem("dataset.path", what, config.path, remedy(outside)))
        self.notes = self._found()

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Value of the column `key`, else a hash of the row's content."""
        return self._keys[checked(index, self._keys)]

    def identity(self, index: int) -> str:
        """A hash of the row's content when the table was opened; empty if the row could not be read."""
        return self._contents.identity(index)

    def inputs(self, index: int) -> str | None:
        """A hash of the content of the image, its mask, control image, reference and LoRA."""
        try:
            return files_content(self._input_files(index))
        except SampleError:
            return None

    def known_inputs(self, index: int) -> str | None:
        """The same; None if a file is behind a URL. Then the URL, which `identity` contains, names the content."""
        try:
            files = self._input_files(index)
        except SampleError:
            return None
        return None if any(map(is_remote, files)) else files_content(files)

    def _input_files(self, index: int) -> list[File | None]:
        image, *further = self._columns
        columns = (image, "mask", *further) if self._config.has_masks else (image, *further)
        row = self._rows[index]
        files = [self._allowed_file(row, column) for column in columns]
        if (lora := lora_file(row, self._place.path.parent)) is not None:  # else as before LoRAs existed
            self._allowed.require(lora)
            files.append(lora)
        return files

    def truth(self, index: int) -> str | None:
        """A hash of the content of the ground truth; None for a URL, which `identity` contains."""
        try:
            path = self._allowed_file(self._rows[index], "truth")
        except SampleError:
            return None
        return None if path is None or is_remote(path) else files_content([path])

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the column `size`, else from the header of a local image file."""
        return declared_size(self._rows, index) or self._measured_size(index)

    def load(self, index: int) -> Sample:
        """Read the images of row `index`."""
        key = self.key(index)
        where = f"{self._place.name}, row {index + 1}"
        row = self._rows[index]
        require_numbers(row, where)
        require_lora(row, self._place.path.parent, self._allowed, where)
        prompt = text_of(row, "prompt", where)
        if prompt is None:
            prompt = self._config.prompt
        if prompt is None:
            raise SampleError(f"{where}: has no prompt; write one into the row, or set dataset.prompt")
        image, *further = (self._needed_file(row, column, where) for column in self._columns)
        by_column = dict(zip(self._columns[1:], further, strict=True))
        parts = SampleParts(
            key=key,
            prompt=prompt,
            prompt_2=text_of(row, "prompt_2", where),
            negative_prompt=text_of(row, "negative_prompt", where),
            image=image,
            mask=self._file(row, "mask", where),
            truth=self._file(row, "truth", where),
            control=by_column.get(self._config.controls or ""),
            reference=by_column.get(self._config.references or ""),
            size=read_size(row.get("size"), where),
        )
        return read_sample(parts, self._config, self._allowed)

    def _measured_size(self, index: int) -> tuple[int, int] | None:
        try:
            image = self._allowed_file(self._rows[index], self._config.image_column)
        except SampleError:
            return None
        return None if image is None or is_remote(image) else picture_size(image)

    def _allowed_file(self, row: Row, column: str) -> File | None:
        """The file of a column. Raises a SampleError if the dataset may not read it."""
        file = self._file(row, column, "")
        if isinstance(file, Path):
            self._allowed.require(file)
        elif isinstance(file, RemoteFile):
            self._allowed.require_url(file.url)
        return file

    def _needed_file(self, row: Row, column: str, where: str) -> File:
        file = self._file(row, column, where)
        if file is None:
            noun = "image" if column == "image" else f"{column} image"
            raise SampleError(f"{where}: has no {noun}; write the path of an image into the column")
        return file

    def _file(self, row: Row, column: str, where: str) -> File | None:
        if isinstance(paths := row.get(column), list):
            raise SampleError(f"{where}: {column} has {len(paths)} paths, but a sample has one; write one into the row")
        text = text_of(row, column, where)
        return None if text is None else self._place.file(text, f"{where}: {column}")

    def _found(self) -> list[str]:
        """The sentences about this table."""
        config, contents = self._config, self._contents
        notes = contents.notes((*USED_COLUMNS, *self._columns))
        what = f"with files outside of the dataset, which will fail (set {KEY})"
        notes += note(contents.num_outside, ROWS, what, contents.outside)
        if config.prompt is None:
            notes += contents.lacking("prompt", "without a prompt, which will fail")
        for column in self._columns:
            noun = "an image" if column == "image" else f"an image in the column {column!r}"
            notes += contents.lacking(column, f"without {noun}, which will fail")
        if not config.has_masks:
            return notes
        if config.alpha_mask:
            notes += contents.lacking("mask", "without a mask file: transparent pixels are the mask")
        elif config.mask is None:
            notes += contents.lacking("mask", "without a mask, which will fail")
        else:
            notes += contents.lacking("mask", f"without a mask: fluxexp draws it (dataset.mask={config.mask})")
        return notes


def _require_own_columns(config: TableDatasetConfig) -> None:
    """Raise a ConfigError if control images or references are in a column with another meaning."""
    problems = [
        Problem(f"dataset.{key}", "is a column with another meaning", column, f"use another name, such as {key[:-1]}")
        for key, column in (("controls", config.controls), ("references", config.references))
        if column in USED_COLUMNS
    ]
    if config.controls is not None and config.controls == config.references:
        hint = "name a column for each"
        problems.append(Problem("dataset.references", "is the column of dataset.controls", config.references, hint))
    if problems:
        raise ConfigError(problems)
