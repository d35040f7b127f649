"""`dataset=folder`: images in a folder, with masks, captions and ground truths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from fluxexp.config.schema import FolderDatasetConfig
from fluxexp.data.companions import Companions
from fluxexp.data.dataset import SamplingColumns
from fluxexp.data.file_access import KEY, AllowedFolders, read_text, remedy
from fluxexp.data.file_content import files_content
from fluxexp.data.folder_listing import (
    MASK_SUFFIXES,
    Listing,
    MatchingFiles,
    existing_folder,
    folded,
    list_folder,
    masked_name,
    stem,
)
from fluxexp.data.image_reading import picture_size, readable_extensions
from fluxexp.data.notes import note
from fluxexp.data.pairing import SampleParts, read_sample
from fluxexp.data.paths import printable
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample, content_hash

_SAMPLES = ("sample", "samples")
_MASKS = ("mask", "masks")
_COMPANIONS = {"truths": "a ground truth", "controls": "a control image", "references": "a reference"}
"""Keys of folders with the pictures that belong to images."""


class Folder:
    """Samples in the order of their paths. Opening lists the folders but reads no file.

    Masks are next to the images (NAME_mask.png) or in `dataset.masks`. Captions are next to the images (NAME.txt).
    Ground truths are in `dataset.truths`, control images in `dataset.controls` and references in `dataset.references`.
    """

    def __init__(self, config: FolderDatasetConfig) -> None:
        self._config = config
        self._root = existing_folder("dataset.path", config.path)
        masks = None if config.masks is None else existing_folder("dataset.masks", config.masks)
        companions = {
            key: None if (text := getattr(config, key)) is None else existing_folder(f"dataset.{key}", text)
            for key in _COMPANIONS
        }
        own = [folder for folder in (self._root, masks, *companions.values()) if folder is not None]
        self._allowed = AllowedFolders(own, config.allowed_folders)
        listing = list_folder(self._root, self._allowed, excluded=own[1:])
        pictures, mask_files = _without_masks(listing, needs_masks=self._needs_mask_files)
        if not pictures:
            hint = f"use one of these file types: {' '.join(sorted(readable_extensions()))}"
            skipped = "".join(f"; {sentence}" for sentence in _skipped(listing))
            raise ConfigError(Problem("dataset.path", f"contains no images{skipped}", config.path, hint))
        if masks is not None:
            mask_listing = list_folder(masks, self._allowed)
            mask_files = mask_listing.pictures
        self._mask_suffixes = MASK_SUFFIXES if masks is None else ("", *MASK_SUFFIXES)
        self._masks = MatchingFiles(masks or self._root, mask_files, pictures)
        self._truths, self._controls, self._references = self._companions = [
            Companions(key, noun, getattr(config, key), companions[key], self._allowed, pictures)
            for key, noun in _COMPANIONS.items()
        ]
        self._captions = MatchingFiles(self._root, listing.captions, pictures)
        self._pictures = pictures[: config.limit]
        self._keys = list(map(printable, _keys(pictures)[: config.limit]))
        self._outside = listing.outside
        self._check_matches()
        self.notes = [printable(text) for text in self._found(listing, pictures, mask_files)]

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, index: int) -> str:
        """The path inside the folder. It has an extension only if two images would have the same key otherwise."""
        if not 0 <= index < len(self._keys):
            raise IndexError(index)
        return self._keys[index]

    def identity(self, index: int) -> str:
        """A hash of the caption; empty if the caption cannot be read."""
        try:
            return content_hash(self._prompt(self._pictures[index]))
        except SampleError:
            return ""

    def inputs(self, index: int) -> str | None:
        """A hash of the content of the image, of its mask, and of its control image and reference."""
        path = self._pictures[index]
        mask = self._mask(path) if self._config.has_masks else None
        try:
            further = [each.path(path) for each in (self._controls, self._references) if each.is_set]
        except SampleError:
            return None
        return self._content([self._root / path, mask, *further])

    def known_inputs(self, index: int) -> str | None:
        """The same."""
        return self.inputs(index)

    def truth(self, index: int) -> str | None:
        """A hash of the content of the ground truth."""
        try:
            path = self._truths.path(self._pictures[index])
        except SampleError:
            return None
        return None if path is None else self._content([path])

    def _content(self, files: Sequence[Path | None]) -> str | None:
        is_allowed = all(file is None or not file.is_symlink() or self._allowed.contain(file) for file in files)
        return files_content(files) if is_allowed else None

    def guidance(self, index: int) -> None:
        """None, because a folder has no settings."""

    def true_cfg_scale(self, index: int) -> None:
        """None, for the same reason."""

    sampling_columns = SamplingColumns()

    has_loras = False

    def lora(self, index: int) -> None:
        """None: no sample has a LoRA of its own."""

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the header of the image file."""
        path = self._pictures[index]
        return None if path in self._outside else picture_size(self._root / path)

    def load(self, index: int) -> Sample:
        """Read image number `index` with its mask, caption and ground truth."""
        key = self.key(index)
        path = self._pictures[index]
        try:
            parts = SampleParts(
                key=key,
                prompt=self._prompt(path),
                image=self._root / path,
                mask=self._mask(path),
                truth=self._truths.path(path),
                control=self._controls.path(path),
                reference=self._references.path(path),
            )
            return read_sample(parts, self._config, self._allowed)
        except SampleError as error:
            raise SampleError(printable(str(error))) from error

    def _prompt(self, path: PurePosixPath) -> str:
        caption = self._captions.path(path, ("",))
        if caption is not None and caption.is_symlink():
            self._allowed.require(caption)
        try:
            text = "" if caption is None else read_text(caption).strip()
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise SampleError(f"{caption}: cannot be read ({error})") from None
        if text:
            return text
        if self._config.prompt is None:
            caption = caption or (self._root / path).with_suffix(".txt")
            raise SampleError(f"{caption}: does not exist or is empty; write a caption, or set dataset.prompt")
        return self._config.prompt

    def _mask(self, path: PurePosixPath) -> Path | None:
        return self._masks.path(path, self._mask_suffixes)

    @property
    def _needs_mask_files(self) -> bool:
        """Whether a picture without a mask file is an error."""
        config = self._config
        return config.has_masks and config.masks is None and config.mask is None and not config.alpha_mask

    def _check_matches(self) -> None:
        """Raise a ConfigError if every image lacks a mask or a companion. If only some do, their samples fail."""
        config = self._config
        problems = []
        if all(path in self._outside for path in self._pictures):
            targets = [self._outside[path] for path in self._pictures]
            what = f"contains only links to files outside of it ({len(targets)}), for example {targets[0]}"
            problems.append(Problem("dataset.path", what, config.path, remedy(targets)))
        if (config.masks is not None or self._needs_mask_files) and not any(map(self._mask, self._pictures)):
            problems.append(
                Problem(
                    "dataset.masks",
                    f"no image in {config.path} has a mask",
                    config.masks,
                    "put NAME_mask.png next to NAME.jpg, set a folder of masks (dataset.masks=DIR), use transparency "
                    "(dataset.alpha_mask=true), or let fluxexp draw masks (dataset.mask=box|center|strokes|outpaint)",
                )
            )
        problems += [found for each in self._companions if (found := each.problem(self._pictures, config.path))]
        if problems:
            raise ConfigError(problems)

    def _found(
        self, listing: Listing, pictures: Sequence[PurePosixPath], mask_files: Sequence[PurePosixPath]
    ) -> list[str]:
        """The sentences about this folder."""
        counts = Counter(map(folded, pictures))
        alike = [path for path in pictures if counts[folded(path)] > 1]
        notes = _skipped(listing)
        outside = [path for path in self._pictures if path in self._outside]
        what = f"which lead out of the dataset and will fail (set {KEY})"
        notes += note(len(outside), ("link", "links"), what, outside)
        notes += note(
            len(alike), ("picture", "pictures"), "have the names of others, apart from extension or case", alike
        )
        if self._config.has_masks:
            used = {self._masks.find(path, self._mask_suffixes) for path in pictures}
            unused = [path for path in mask_files if path not in used]
            named = {name for path in pictures for name in self._names_of_masks(path)}
            further = [path for path in unused if folded(path) in named]
            orphans = [path for path in unused if folded(path) not in named]
            notes += note(len(orphans), _MASKS, "without a picture of this name", orphans)
            notes += note(len(further), _MASKS, "not used, because the picture has another one", further)
            notes += self._missing_masks()
        if self._config.prompt is None:
            missing = [p for p in self._pictures if self._captions.find(p, ("",)) is None]
            notes += note(len(missing), _SAMPLES, "without a caption, which will fail", missing)
        for each in self._companions:
            notes += each.missing(self._pictures)
        return notes

    def _names_of_masks(self, path: PurePosixPath) -> list[str]:
        return [folded(path) + suffix for suffix in self._mask_suffixes]

    def _missing_masks(self) -> list[str]:
        config = self._config
        missing = [path for path in self._pictures if self._masks.find(path, self._mask_suffixes) is None]
        if config.alpha_mask:
            return note(len(missing), _SAMPLES, "without a mask file: transparent pixels are the mask")
        if config.mask is not None:
            return note(len(missing), _SAMPLES, f"without a mask: fluxexp draws it (dataset.mask={config.mask})")
        return note(len(missing), _SAMPLES, "without a mask, which will fail", missing)


def _skipped(listing: Listing) -> list[str]:
    return note(len(listing.skipped), ("picture", "pictures"), "skipped, which Pillow cannot read", listing.skipped)


def _without_masks(listing: Listing, *, needs_masks: bool) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Divide the pictures of a folder into images, and masks that lie next to them.

    A file with the name of a mask is a mask if there is a picture of this name, also one that cannot be read. Without
    such a picture it is an image, unless each image needs a mask and this one has none.
    """
    names = set(map(folded, [*listing.pictures, *listing.skipped]))
    pictures: list[PurePosixPath] = []
    masks: list[PurePosixPath] = []
    for path in listing.pictures:
        name = masked_name(path)
        is_mask = name is not None and (name in names or (needs_masks and not _has_mask(path, names)))
        (masks if is_mask else pictures).append(path)
    return pictures, masks


def _has_mask(path: PurePosixPath, names: Collection[str]) -> bool:
    return any(folded(path) + suffix in names for suffix in MASK_SUFFIXES)


def _keys(pictures: Sequence[PurePosixPath]) -> list[str]:
    """Paths without extension, or with it where two keys would be equal."""
    counts = Counter(map(stem, pictures))
    whole = {path.as_posix() for path in pictures}
    return [
        name if counts[name] == 1 and name not in whole else path.as_posix()
        for path in pictures
        for name in (stem(path),)
    ]
