"""`dataset=folder`: images in a folder, with masks, captions and ground truths."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fluxexp.config.schema import FolderDatasetConfig
from fluxexp.data.file_content import files_content
from fluxexp.data.image_reading import EXTENSIONS, picture_size
from fluxexp.data.pairing import SampleParts, read_sample
from fluxexp.data.paths import expanded, printable
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample, content_hash

_MASK_SUFFIXES = ("_mask", "-mask", ".mask")


class Folder:
    """Samples in the order of their paths. Opening lists the folders but reads no file.

    Masks lie next to the images (NAME_mask.png) or in `dataset.masks`. Captions lie next to the images (NAME.txt).
    Ground truths lie in `dataset.truths`.
    """

    def __init__(self, config: FolderDatasetConfig) -> None:
        self._config = config
        self._root = _existing_folder("dataset.path", config.path)
        masks = None if config.masks is None else _existing_folder("dataset.masks", config.masks)
        truths = None if config.truths is None else _existing_folder("dataset.truths", config.truths)
        files = _pictures(self._root, excluded=[folder for folder in (masks, truths) if folder is not None])
        stems = {_stem(path) for path in files}
        mask_files = [path for path in files if _masked_stem(path) in stems]
        pictures = [path for path in files if _masked_stem(path) not in stems]
        if not pictures:
            hint = f"use one of these file types: {' '.join(sorted(EXTENSIONS))}"
            raise ConfigError(Problem("dataset.path", "contains no images", config.path, hint))
        self._masks = (
            _MatchingFiles(self._root, mask_files) if masks is None else _MatchingFiles(masks, _pictures(masks))
        )
        self._mask_suffixes = _MASK_SUFFIXES if masks is None else ("", *_MASK_SUFFIXES)
        self._truths = None if truths is None else _MatchingFiles(truths, _pictures(truths))
        self._pictures = pictures[: config.limit]
        self._keys = list(map(printable, _keys(pictures)[: config.limit]))
        self._check_matches()

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, index: int) -> str:
        """The path inside the folder. It has an extension only where two images would have the same key."""
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
        """A hash of the content of the image and of its mask."""
        path = self._pictures[index]
        mask = None if self._config.mask == "none" else self._mask(path)
        return files_content([self._root / path, mask])

    def truth(self, index: int) -> str | None:
        """A hash of the content of the ground truth."""
        try:
            path = self._truth(self._pictures[index])
        except SampleError:
            return None
        return None if path is None else files_content([path])

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels from the header of the image file."""
        return picture_size(self._root / self._pictures[index])

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
                truth=self._truth(path),
            )
            return read_sample(parts, alpha_mask=self._config.alpha_mask, mask_kind=self._config.mask)
        except SampleError as error:
            raise SampleError(printable(str(error))) from error

    def _prompt(self, path: PurePosixPath) -> str:
        caption = (self._root / path).with_suffix(".txt")
        try:
            text = caption.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise SampleError(f"{caption}: cannot be read ({error})") from None
        if text:
            return text
        if self._config.prompt is None:
            raise SampleError(f"{caption}: does not exist or is empty; write a caption, or set dataset.prompt")
        return self._config.prompt

    def _mask(self, path: PurePosixPath) -> Path | None:
        return self._masks.find(path, self._mask_suffixes)

    def _truth(self, path: PurePosixPath) -> Path | None:
        if self._truths is None:
            return None
        found = self._truths.find(path, ("",))
        if found is None:
            raise SampleError(f"{self._config.truths}: has no ground truth for {path}; add a file with this name")
        return found

    def _check_matches(self) -> None:
        """Raise a ConfigError if every image lacks a mask or a ground truth. If only some do, their samples fail."""
        config = self._config
        problems = []
        if (config.masks is not None or (config.mask is None and not config.alpha_mask)) and not any(
            map(self._mask, self._pictures)
        ):
            problems.append(
                Problem(
                    "dataset.masks",
                    f"no image in {config.path} has a mask",
                    config.masks,
                    "put NAME_mask.png next to NAME.jpg, set a folder of masks (dataset.masks=DIR), use transparency "
                    "(dataset.alpha_mask=true), or let fluxexp draw masks (dataset.mask=box|center|strokes|outpaint)",
                )
            )
        truths = self._truths
        if truths is not None and not any(truths.find(path, ("",)) for path in self._pictures):
            hint = "set a folder that contains ground truths with the names of the images"
            reason = f"no image in {config.path} has a ground truth"
            problems.append(Problem("dataset.truths", reason, config.truths, hint))
        if problems:
            raise ConfigError(problems)


class _MatchingFiles:
    """Finds the mask or the ground truth of an image by the name of the image."""

    def __init__(self, root: Path, paths: Sequence[PurePosixPath]) -> None:
        self._root = root
        self._names = frozenset(path.as_posix() for path in paths)
        self._by_stem = {_stem(path): path for path in paths}

    def find(self, path: PurePosixPath, suffixes: Sequence[str]) -> Path | None:
        """The file whose name is that of `path` with one of `suffixes`. The extension of `path` is preferred."""
        for suffix in suffixes:
            stem = f"{_stem(path)}{suffix}"
            name = f"{stem}{path.suffix}"
            if name in self._names:
                return self._root / name
            if stem in self._by_stem:
                return self._root / self._by_stem[stem]
        return None


def _existing_folder(key: str, text: str) -> Path:
    if not text:
        raise ConfigError(Problem(key, "is not set", hint=f"set {key}=DIR"))
    path = expanded(text)
    if not path.is_dir():
        raise ConfigError(Problem(key, "is not a folder", text, f"set {key}=DIR to a folder of images"))
    return path


def _pictures(root: Path, excluded: Collection[Path] = ()) -> list[PurePosixPath]:
    """Sorted paths of the images under `root`, relative to it, without hidden files and without the `excluded` folders.

    Raises:
        ConfigError: a folder cannot be listed.
    """
    try:
        return sorted(_walk(root, {folder.resolve() for folder in excluded}))
    except OSError as error:
        raise ConfigError(Problem("dataset.path", f"cannot be listed ({error})", str(root))) from None


def _walk(root: Path, excluded: Collection[Path]) -> Iterator[PurePosixPath]:
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and _is_listed(here, name, excluded)]
        inside = PurePosixPath(here.relative_to(root).as_posix())
        for name in names:
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                yield inside / name


def _is_listed(here: Path, name: str, excluded: Collection[Path]) -> bool:
    """Whether to list folder `name`: it is not in `excluded`, and not a symbolic link to one of its own parents."""
    target = (here / name).resolve()
    return target not in excluded and not here.resolve().is_relative_to(target)


def _raise(error: OSError) -> None:
    raise error


def _keys(pictures: Sequence[PurePosixPath]) -> list[str]:
    """Paths without extension, or with it where two keys would be equal."""
    counts = Counter(map(_stem, pictures))
    whole = {path.as_posix() for path in pictures}
    return [
        stem if counts[stem] == 1 and stem not in whole else path.as_posix()
        for path in pictures
        for stem in (_stem(path),)
    ]


def _stem(path: PurePosixPath) -> str:
    return path.with_suffix("").as_posix()


def _masked_stem(path: PurePosixPath) -> str | None:
    """`a/cat` for `a/cat_mask.png`; None if the name has no suffix of a mask."""
    stem = _stem(path)
    return next((stem.removesuffix(suffix) for suffix in _MASK_SUFFIXES if stem.endswith(suffix)), None)
