"""`dataset=prompts`: samples with only a prompt, from a text file or a table."""

from __future__ import annotations

from fluxexp.config.schema import PromptsDatasetConfig
from fluxexp.data.file_access import AllowedFolders
from fluxexp.data.file_content import files_content
from fluxexp.data.lora_columns import lora_file, require_lora
from fluxexp.data.row import PASS_COLUMNS
from fluxexp.data.row_values import RowSettings, checked, declared_size, read_size, text_of
from fluxexp.data.rows import EXTENSIONS
from fluxexp.data.table_contents import TableContents, require_numbers
from fluxexp.data.table_place import find_table
from fluxexp.errors import SampleError
from fluxexp.records import Sample

_PROMPT_COLUMNS = ("prompt", "key", "size", "guidance", "lora", "lora_scale", *PASS_COLUMNS)


class Prompts(RowSettings):
    """Samples with only a prompt, from a .txt file with one prompt per line or a table with the column `prompt`."""

    def __init__(self, config: PromptsDatasetConfig) -> None:
        self._place = find_table(config.path, (".txt", *EXTENSIONS))
        self._allowed = AllowedFolders(self._place.own_folders, [])
        self._contents = TableContents(self._place, {"prompt": ""}, config.limit, self._allowed)
        self._rows, self._keys = self._contents.rows, self._contents.keys
        self.notes = self._contents.notes(_PROMPT_COLUMNS)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Value of the column `key`, else a hash of the row's content."""
        return self._keys[checked(index, self._keys)]

    def identity(self, index: int) -> str:
        """A hash of the row's content when the table was opened; empty if the row could not be read."""
        return self._contents.identity(index)

    def inputs(self, index: int) -> str | None:
        """A hash of the content of the LoRA; None if the row has none."""
        try:
            lora = lora_file(self._rows[index], self._place.path.parent)
            if lora is not None:
                self._allowed.require(lora)
        except SampleError:
            return None
        return None if lora is None else files_content([lora])

    def known_inputs(self, index: int) -> str | None:
        """The same: the file of a LoRA is local."""
        return self.inputs(index)

    def truth(self, index: int) -> None:
        """None, because a prompt has no files."""

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the column `size`."""
        return declared_size(self._rows, index)

    def load(self, index: int) -> Sample:
        """Read row `index`."""
        key = self.key(index)
        where = f"{self._place.name}, row {index + 1}"
        row = self._rows[index]
        require_numbers(row, where)
        require_lora(row, self._place.path.parent, self._allowed, where)
        prompt = text_of(row, "prompt", where)
        if prompt is None:
            raise SampleError(f"{where}: has no prompt; write one into the row")
        return Sample(
            key=key,
            prompt=prompt,
            prompt_2=text_of(row, "prompt_2", where),
            negative_prompt=text_of(row, "negative_prompt", where),
            size=read_size(row.get("size"), where),
        )
