"""`dataset=folder`: pictures in a folder, with masks, captions and truths beside them or in folders of their own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fluxexp.config.schema import FolderDataset
from fluxexp.data.images import EXTENSIONS
from fluxexp.data.pairing import Parts, read_sample
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.records import Sample

_MASK_SUFFIXES = ("_mask", "-mask", ".mask")


class Folder:
    """Samples in the order of their paths. Opening lists the folders and reads nothing."""

    def __init__(self, config: FolderDataset) -> None:
        self._config = config
        self._root = _existing_folder("dataset.path", config.path)
        files = _pictures(self._root)
        stems = {_stem(path) for path in files}
        masks = [path for path in files if _masked_stem(path) in stems]
        pictures = [path for path in files if _masked_stem(path) not in stems]
        if not pictures:
            hint = f"read: {' '.join(sorted(EXTENSIONS))}"
            raise ConfigError(Problem("dataset.path", "holds no pictures", config.path, hint))
        self._masks = _by_stem(masks) if config.masks is None else _pictures_of("dataset.masks", config.masks)
        self._truths = {} if config.truths is None else _pictures_of("dataset.truths", config.truths)
        self._pictures = pictures[: config.limit]
        counts = Counter(_stem(path) for path in pictures)
        self._keys = [_stem(path) if counts[_stem(path)] == 1 else path.as_posix() for path in self._pictures]
        self._check_masks()

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, index: int) -> str:
        """The path inside the folder, without its extension where that is enough."""
        return self._keys[index]

    def load(self, index: int) -> Sample:
        """Read picture `index` with its mask, caption and truth."""
        path = self._pictures[index]
        parts = Parts(
            key=self._keys[index],
            prompt=self._prompt(path),
            image=self._root / path,
            mask=self._mask(path),
            truth=self._truth(path),
        )
        return read_sample(parts, alpha_mask=self._config.alpha_mask, mask_kind=self._config.mask)

    def _prompt(self, path: PurePosixPath) -> str:
        caption = (self._root / path).with_suffix(".txt")
        try:
            return caption.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            if self._config.prompt is None:
                raise SampleError(f"{caption}: no such file; add the caption, or set dataset.prompt") from None
            return self._config.prompt
        except (OSError, UnicodeDecodeError) as error:
            raise SampleError(f"{caption}: cannot be read ({error})") from None

    def _mask(self, path: PurePosixPath) -> Path | None:
        stem = _stem(path)
        if self._config.masks is not None:
            names = [stem, *(f"{stem}{suffix}" for suffix in _MASK_SUFFIXES)]
            found = next((self._masks[name] for name in names if name in self._masks), None)
            return None if found is None else Path(self._config.masks) / found
        found = next((self._masks[name] for s in _MASK_SUFFIXES if (name := f"{stem}{s}") in self._masks), None)
        return None if found is None else self._root / found

    def _truth(self, path: PurePosixPath) -> Path | None:
        if self._config.truths is None:
            return None
        found = self._truths.get(_stem(path))
        if found is None:
            raise SampleError(f"{self._config.truths}: holds no picture for {path}")
        return Path(self._config.truths) / found

    def _check_masks(self) -> None:
        """No mask at all is a mistake in the config; one that is missing is that sample's."""
        if self._config.mask is None and not self._config.alpha_mask and not any(map(self._mask, self._pictures)):
            raise ConfigError(
                Problem(
                    "dataset.masks",
                    f"no picture in {self._config.path} has a mask",
                    self._config.masks,
                    "put NAME_mask.png beside NAME.jpg, name a folder of masks (dataset.masks=DIR), use transparency "
                    "(dataset.alpha_mask=true), or have masks drawn (dataset.mask=box|center|strokes|outpaint)",
                )
            )


def _existing_folder(key: str, text: str) -> Path:
    if not text:
        raise ConfigError(Problem(key, "is not set", hint=f"give {key}=DIR"))
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ConfigError(Problem(key, "is not a folder", text))
    return path


def _pictures(root: Path) -> list[PurePosixPath]:
    """Pictures under `root`, relative to it and sorted; hidden files and folders are passed over."""
    return sorted(_walk(root))


def _pictures_of(key: str, text: str) -> dict[str, PurePosixPath]:
    return _by_stem(_pictures(_existing_folder(key, text)))


def _walk(root: Path) -> Iterator[PurePosixPath]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in names:
            if Path(name).suffix.lower() in EXTENSIONS and not name.startswith("."):
                yield inside / name


def _stem(path: PurePosixPath) -> str:
    return path.with_suffix("").as_posix()


def _masked_stem(path: PurePosixPath) -> str | None:
    """`a/cat` for `a/cat_mask.png`; None for a file that is not named like a mask."""
    stem = _stem(path)
    return next((stem.removesuffix(suffix) for suffix in _MASK_SUFFIXES if stem.endswith(suffix)), None)


def _by_stem(paths: list[PurePosixPath]) -> dict[str, PurePosixPath]:
    return {_stem(path): path for path in sorted(paths)}
