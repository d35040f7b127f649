"""Lists the files of a folder, and matches masks, captions and ground truths with images by their names."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fluxexp.data.file_access import AllowedFolders, remedy
from fluxexp.data.image_reading import OTHER_EXTENSIONS, readable_extensions
from fluxexp.data.paths import expanded, is_url
from fluxexp.errors import ConfigError, Problem

MASK_SUFFIXES = ("_mask", "-mask", ".mask")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder, sorted, with paths relative to it. Hidden files are left out."""

    pictures: list[PurePosixPath] = field(default_factory=list)
    skipped: list[PurePosixPath] = field(default_factory=list)
    """Pictures of formats that cannot be read."""
    captions: list[PurePosixPath] = field(default_factory=list)
    outside: dict[PurePosixPath, str] = field(default_factory=dict)
    """Links that lead out of the allowed folders, with their targets: files of the lists above, and folders."""


def list_folder(root: Path, allowed: AllowedFolders, excluded: Collection[Path] = ()) -> Listing:
    """List the files under `root`, without the `excluded` folders.

    Raises:
        ConfigError: a folder cannot be listed, or links to folders lead out of the `allowed` ones. Without these
            folders the dataset would silently have fewer samples.
    """
    listing = Listing()
    readable = readable_extensions()
    folders: dict[PurePosixPath, str] = {}
    try:
        found = _Walk(allowed, {folder.resolve() for folder in excluded}, listing.outside, folders)
        for path in sorted(found.files(root, PurePosixPath())):
            extension = path.suffix.lower()
            if extension in readable:
                listing.pictures.append(path)
            elif extension in OTHER_EXTENSIONS:
                listing.skipped.append(path)
            elif extension == ".txt":
                listing.captions.append(path)
    except OSError as error:
        raise ConfigError(Problem("dataset.path", f"cannot be listed ({error})", str(root))) from None
    if folders:
        name, target = next(iter(folders.items()))
        what = f"contains {len(folders)} links to folders outside of it, for example {name} -> {target}"
        hint = remedy([f"{target}/" for target in folders.values()])
        raise ConfigError(Problem("dataset.path", what, str(root), hint))
    return listing


def existing_folder(key: str, text: str) -> Path:
    """The folder that a key of the config names. Raises a ConfigError if it does not exist."""
    if not text:
        raise ConfigError(Problem(key, "is not set", hint=f"set {key}=DIR"))
    if is_url(text):
        raise ConfigError(Problem(key, "is a URL, and fluxexp reads local files", text, "download the files first"))
    path = expanded(text)
    if not path.is_dir():
        raise ConfigError(Problem(key, "is not a folder", text, f"set {key}=DIR to a folder of images"))
    return path


class MatchingFiles:
    """Finds the file that belongs to an image by the name of the image.

    An exact match comes first. Otherwise upper and lower case, and composed and decomposed accents, are equal, unless
    several images then have the same name.
    """

    def __init__(self, root: Path, paths: Sequence[PurePosixPath], pictures: Sequence[PurePosixPath]) -> None:
        self._root = root
        self._names = {path.as_posix(): path for path in paths}
        self._by_stem = {stem(path): path for path in paths}
        self._by_folded = {folded(path): path for path in reversed(paths)}
        counts = Counter(map(fold, {stem(path) for path in pictures}))
        self._shared = {name for name, count in counts.items() if count > 1}

    def find(self, path: PurePosixPath, suffixes: Sequence[str]) -> PurePosixPath | None:
        """The file whose name is that of `path` with one of `suffixes`. The extension of `path` is preferred."""
        for suffix in suffixes:
            name = f"{stem(path)}{suffix}"
            found = self._names.get(f"{name}{path.suffix}") or self._by_stem.get(name)
            if found is not None:
                return found
        if folded(path) in self._shared:
            return None
        matches = (self._by_folded.get(folded(path) + suffix) for suffix in suffixes)
        return next((found for found in matches if found is not None), None)

    def path(self, path: PurePosixPath, suffixes: Sequence[str]) -> Path | None:
        """Like `find`, as a path that can be opened."""
        found = self.find(path, suffixes)
        return None if found is None else self._root / found


def stem(path: PurePosixPath) -> str:
    """The path without its extension."""
    return os.path.splitext(str(path))[0]  # noqa: PTH122 (a folder has many files, and pathlib is slow)


def fold(text: str) -> str:
    """`text` without the difference of upper and lower case, and of composed and decomposed accents."""
    return unicodedata.normalize("NFC", text).casefold()


def folded(path: PurePosixPath) -> str:
    """The path without its extension, folded."""
    return fold(stem(path))


def masked_name(path: PurePosixPath) -> str | None:
    """`a/cat` for `a/Cat_MASK.png`; None if the name has no suffix of a mask."""
    name = folded(path)
    return next((name.removesuffix(suffix) for suffix in MASK_SUFFIXES if name.endswith(suffix)), None)


@dataclass(frozen=True, slots=True)
class _Walk:
    """Finds files, and follows links to folders."""

    allowed: AllowedFolders
    excluded: Collection[Path]
    outside: dict[PurePosixPath, str]
    """Gets the files that lead out of the allowed folders."""
    outside_folders: dict[PurePosixPath, str]
    """Gets the folders that lead out of them. They are not listed."""

    def files(self, folder: Path, inside: PurePosixPath) -> Iterator[PurePosixPath]:
        """The files below `folder`, whose path inside of the dataset is `inside`."""
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in shown:
            path = inside / entry.name
            is_outside = entry.is_symlink() and not self.allowed.contain(entry.path)
            if not entry.is_dir():
                if is_outside:
                    self.outside[path] = os.path.realpath(entry.path)
                yield path
            elif is_outside:
                self.outside_folders[path] = os.path.realpath(entry.path)
            elif self._is_listed(folder, Path(entry.path)):
                yield from self.files(Path(entry.path), path)

    def _is_listed(self, parent: Path, folder: Path) -> bool:
        """Whether to list `folder`: it is not excluded, and not a symbolic link to one of its own parents."""
        target = folder.resolve()
        return target not in self.excluded and not parent.resolve().is_relative_to(target)
