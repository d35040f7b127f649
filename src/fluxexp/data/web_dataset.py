"""`dataset=webdataset`: samples in tars, local or behind URLs, with random access and without extraction."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from fluxexp.config.schema import WebDatasetConfig
from fluxexp.data.dataset import SamplingColumns
from fluxexp.data.file_access import MAX_TEXT_BYTES, AllowedFolders
from fluxexp.data.image_reading import picture_size, readable_extensions
from fluxexp.data.key_hashes import first_repeated
from fluxexp.data.notes import note
from fluxexp.data.pairing import SampleParts, read_sample
from fluxexp.data.tar_files import find_tars, open_tars
from fluxexp.data.tar_index import Members, TarIndex
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample, content_hash

_SAMPLES = ("sample", "samples")


@dataclass(frozen=True, slots=True)
class TarMember:
    """A picture in a tar."""

    index: TarIndex
    name: str
    offset: int
    size: int
    facts: tuple[str, int, int]
    """What its header says: extension, size, and modification time in seconds."""
    is_remote: bool = field(default=False, init=False)

    def __str__(self) -> str:
        return f"{self.index.place}, {self.name}"

    def read(self) -> bytes:
        """All bytes."""
        return self.index.read(self.offset, self.size)

    def content(self) -> str:
        """What its header says. The bytes are not read for it."""
        return content_hash(self.facts)


class WebDataset:
    """Samples in the order of the tars. Opening reads only headers, and those only once on a machine.

    The members of a sample are those that follow each other and have its key. What changes with their content is what
    their headers say: size and modification time.
    """

    def __init__(self, config: WebDatasetConfig) -> None:
        self._config = config
        self._allowed = AllowedFolders([], config.allowed_folders)
        self._tars = open_tars(find_tars(config.path), config)
        ends = list(accumulate(len(tar.keys) for tar in self._tars))
        self._starts = [0, *ends]
        self._length = min(ends[-1], config.limit or ends[-1])
        if not self._length:
            hint = "the members of a sample are KEY.jpg, KEY.txt and so on"
            raise ConfigError(Problem("dataset.path", "has no samples", config.path, hint))
        self._require_own_keys()
        self.notes = self._found()

    def __len__(self) -> int:
        return self._length

    def key(self, index: int) -> str:
        """The key in the tar; with `dataset.keys=shards` after the name of the tar."""
        tar, number = self._locate(index)
        return self._name(tar, tar.keys[number])

    def _name(self, tar: TarIndex, key: str) -> str:
        if self._config.keys == "members":
            return key
        return f"{tar.place.rpartition('/')[2].removesuffix('.tar')}/{key}"

    def identity(self, index: int) -> str:
        """A hash of what the header of the caption says; empty without a caption."""
        extension = self._caption_extension
        found = self._member(index, extension)
        return "" if found is None else content_hash(found.facts)

    def inputs(self, index: int) -> str | None:
        """A hash of what the headers of the pictures say."""
        try:
            return content_hash([None if file is None else file.content() for file in self._input_files(index)])
        except SampleError:
            return None

    def known_inputs(self, index: int) -> str | None:
        """The same."""
        return self.inputs(index)

    def truth(self, index: int) -> str | None:
        """A hash of what the header of the ground truth says."""
        member = self._member(index, self._config.members.truth)
        return None if member is None else content_hash(member.facts)

    def guidance(self, index: int) -> None:
        """None: no sample has settings."""

    def true_cfg_scale(self, index: int) -> None:
        """None, for the same reason."""

    sampling_columns = SamplingColumns()
    has_loras = False

    def lora(self, index: int) -> None:
        """None: no sample has a LoRA of its own."""

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the header of a picture in a local tar."""
        tar, _ = self._locate(index)
        try:
            return None if tar.stamp is None else picture_size(self._image(index))
        except SampleError:
            return None

    def load(self, index: int) -> Sample:
        """Read the members of a sample."""
        config, members = self._config, self._config.members
        parts = SampleParts(
            key=self.key(index),
            prompt=self._prompt(index),
            image=self._image(index),
            mask=self._member(index, members.mask) if config.has_masks else None,
            truth=self._needed(index, members.truth),
            control=self._needed(index, config.controls),
            reference=self._needed(index, config.references),
        )
        return read_sample(parts, config, self._allowed)

    def _locate(self, index: int) -> tuple[TarIndex, int]:
        if not 0 <= index < self._length:
            raise IndexError(index)
        place = bisect_right(self._starts, index) - 1
        return self._tars[place], index - self._starts[place]

    @property
    def _caption_extension(self) -> str:
        return "json" if self._config.members.prompt.startswith("json:") else self._config.members.prompt

    def _input_files(self, index: int) -> list[TarMember | None]:
        config = self._config
        mask = [self._member(index, config.members.mask)] if config.has_masks else []
        further = [self._needed(index, name) for name in (config.controls, config.references) if name is not None]
        return [self._image(index), *mask, *further]

    def _image(self, index: int) -> TarMember:
        wanted = self._config.members.image
        if wanted is not None:
            found = self._member(index, wanted)
        else:
            tar, number = self._locate(index)
            pictures = readable_extensions()
            rows = tar.of_sample(number)
            numbers = [row for row in range(len(rows)) if f".{tar.extensions[rows[row]['extension']]}" in pictures]
            found = self._made(tar, number, rows, numbers[0]) if numbers else None
        if found is None:
            raise self._lacks(index, f"image{'' if wanted is None else f' KEY.{wanted}'}")
        return found

    def _needed(self, index: int, name: str | None) -> TarMember | None:
        """The member `name`; None if `name` is None. Raises a SampleError if the sample lacks it."""
        if name is None:
            return None
        found = self._member(index, name)
        if found is None:
            raise self._lacks(index, f"member KEY.{name}")
        return found

    def _lacks(self, index: int, what: str) -> SampleError:
        tar, number = self._locate(index)
        names = ", ".join(tar.extensions[row["extension"]] for row in tar.of_sample(number))
        return SampleError(f"{tar.place}, {tar.keys[number]}: has no {what}; it has {names}")

    def _member(self, index: int, name: str | None) -> TarMember | None:
        """The member of a sample whose extensions are `name`, or begin with it."""
        if name is None:
            return None
        tar, number = self._locate(index)
        rows = tar.of_sample(number)
        for row in range(len(rows)):
            if _fits(tar.extensions[rows[row]["extension"]], name.lower()):
                return self._made(tar, number, rows, row)
        return None

    @staticmethod
    def _made(tar: TarIndex, number: int, rows: Members, row: int) -> TarMember:
        extension = tar.extensions[rows[row]["extension"]]
        offset, size, mtime = (int(rows[row][name]) for name in ("offset", "size", "mtime"))
        return TarMember(tar, f"{tar.keys[number]}.{extension}", offset, size, (extension, size, mtime))

    def _prompt(self, index: int) -> str:
        member, default = self._member(index, self._caption_extension), self._config.prompt
        text = "" if member is None else self._caption(member).strip()
        if text:
            return text
        if default is None:
            raise self._lacks(index, f"caption ({self._config.members.prompt}); set dataset.members.prompt or .prompt")
        return default

    def _caption(self, member: TarMember) -> str:
        if member.size > MAX_TEXT_BYTES:
            raise SampleError(f"{member}: has more than {MAX_TEXT_BYTES} bytes, which is too long for a caption")
        try:
            text = member.read().decode("utf-8-sig")
            if not (field := self._config.members.prompt).startswith("json:"):
                return text
            values = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise SampleError(f"{member}: cannot be read ({error})") from error
        value = values.get(field.removeprefix("json:")) if isinstance(values, dict) else None
        return value if isinstance(value, str) else ""

    def _require_own_keys(self) -> None:
        keys = (self._name(tar, key) for tar in self._tars for key in tar.keys)
        found = first_repeated(keys)
        if found is not None:
            what = f"has the key {self.key(found[1])!r} twice: samples {found[0] + 1} and {found[1] + 1}"
            shards = "dataset.keys=shards names samples TAR/KEY"
            hint = shards if self._config.keys == "members" else "the members of a sample must follow each other"
            raise ConfigError(Problem("dataset.path", what, self._config.path, hint))

    def _found(self) -> list[str]:
        config, notes = self._config, list[str]()
        damaged = [f"{tar.place} ({tar.damage})" for tar in self._tars if tar.damage is not None]
        notes += note(len(damaged), ("tar", "tars"), "damaged, and read only up to there", damaged)
        if config.prompt is None:
            notes += self._lacking(self._caption_extension, "without a caption, which will fail")
        if config.members.image is not None:
            notes += self._lacking(config.members.image, "without an image, which will fail")
        if config.has_masks and not config.alpha_mask:
            drawn = f"without a mask: fluxexp draws it (dataset.mask={config.mask})"
            notes += self._lacking(config.members.mask, drawn if config.mask else "without a mask, which will fail")
        return notes

    def _lacking(self, name: str, what: str) -> list[str]:
        """The sentence about samples without the member `name`. ConfigError if all of them lack it, and fail."""
        has = 0
        for start, tar in zip(self._starts, self._tars, strict=False):
            fitting = [number for number, text in enumerate(tar.extensions) if _fits(text, name.lower())]
            samples = np.unique(tar.members["sample"][np.isin(tar.members["extension"], fitting)])
            has += int(np.searchsorted(samples, self._length - start)) if start < self._length else 0
        if not has and what.endswith("will fail"):
            known = sorted({text for tar in self._tars for text in tar.extensions})[:20]
            hint = f"set dataset.members; the members are {', '.join(known)}"
            if name == self._config.members.mask:
                hint += ", or let fluxexp draw masks (dataset.mask=box|center|strokes|outpaint)"
            raise ConfigError(Problem("dataset.path", f"has no members KEY.{name}", self._config.path, hint))
        return note(self._length - has, _SAMPLES, what)


def _fits(extensions: str, name: str) -> bool:
    return extensions == name or extensions.startswith(f"{name}.")
