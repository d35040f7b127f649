"""Folders of pictures that belong to the images of a folder by name: ground truths, control images and references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fluxexp.data.file_access import AllowedFolders
from fluxexp.data.folder_listing import MatchingFiles, list_folder
from fluxexp.data.notes import note
from fluxexp.errors import Problem, SampleError


class Companions:
    """One such folder. If it is not set, no image has a companion.

    Args:
        key: of the config group `dataset`.
        noun: what a companion is, with its article.
        text: value of the key.
        folder: the folder; None if the key is null.
        allowed: the folders whose files samples may use.
        pictures: the images of the dataset, relative to its folder.
    """

    def __init__(
        self,
        key: str,
        noun: str,
        text: str | None,
        folder: Path | None,
        allowed: AllowedFolders,
        pictures: Sequence[PurePosixPath],
    ) -> None:
        self._key = key
        self._noun = noun
        self._text = text
        files = None if folder is None else list_folder(folder, allowed).pictures
        self._files = None if folder is None or files is None else MatchingFiles(folder, files, pictures)

    @property
    def is_set(self) -> bool:
        """Whether images have companions."""
        return self._files is not None

    def path(self, picture: PurePosixPath) -> Path | None:
        """The companion of an image; None if the folder is not set.

        Raises:
            SampleError: the folder has none.
        """
        if self._files is None:
            return None
        found = self._files.path(picture, ("",))
        if found is None:
            noun = self._noun.split(" ", 1)[1]
            raise SampleError(f"{self._text}: has no {noun} for {picture}; add a file with this name")
        return found

    def problem(self, pictures: Sequence[PurePosixPath], root: str) -> Problem | None:
        """The config error if no image has a companion. If only some have none, their samples fail."""
        if self._files is None or any(self._files.find(picture, ("",)) for picture in pictures):
            return None
        hint = f"set a folder that contains {self._noun.split(' ', 1)[1]}s with the names of the images"
        return Problem(f"dataset.{self._key}", f"no image in {root} has {self._noun}", self._text, hint)

    def missing(self, pictures: Sequence[PurePosixPath]) -> list[str]:
        """The sentence about images without a companion."""
        if self._files is None:
            return []
        missing = [picture for picture in pictures if self._files.find(picture, ("",)) is None]
        return note(len(missing), ("sample", "samples"), f"without {self._noun}, which will fail", missing)
