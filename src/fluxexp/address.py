"""Addresses: where a run, a sweep or a folder of them is. Only `storage` opens what is there."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fluxexp.errors import StorageError

_WITH_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<path>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Address:
    """A local path, or the address of an object store: `outputs/fill-0123`, `s3://bucket/outputs/fill-0123`.

    `str` gives the text that messages show, and `of` is its inverse. Addresses with equal texts are equal.
    """

    scheme: str
    """The part before `://`, which selects the store; empty for a local path."""
    path: str
    """The part after it, normalized as `pathlib` does."""

    @classmethod
    def of(cls, place: str | os.PathLike[str]) -> Address:
        """The address that a user wrote, or the address of a local path."""
        text = os.fspath(place)
        match = _WITH_SCHEME.fullmatch(text)
        return cls("", str(PurePosixPath(text))) if match is None else cls(match["scheme"], match["path"].rstrip("/"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" if self.scheme else self.path

    def __truediv__(self, relative: str) -> Address:
        """The place `relative` below this one. `relative` is a result of `relative_to`, or a key of a store."""
        if _WITH_SCHEME.fullmatch(relative):
            return Address.of(relative)
        joined = str(PurePosixPath(self.path, relative))
        # Object stores take `..` literally. A local `..` stays, because it can follow a symbolic link.
        return Address(self.scheme, posixpath.normpath(joined) if self.scheme else joined)

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> Address:
        """The address without its last part."""
        return Address(self.scheme, str(PurePosixPath(self.path).parent))

    def sibling(self, name: str) -> Address | None:
        """The place `name` beside this one; None if `name` would lead to another folder, as in a damaged file."""
        return None if name in ("", ".", "..") or "/" in name else self.parent / name

    def relative_to(self, folder: Address) -> str:
        """How a file in `folder` names this place. It is the whole address if the two are in different stores."""
        return posixpath.relpath(self.path, folder.path) if self.scheme == folder.scheme else str(self)

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return not self.scheme

    def local_path(self) -> Path:
        """The local path.

        Raises:
            StorageError: it is not a local path.
        """
        if not self.is_local:
            raise StorageError(f"{self} is not a local directory, and this needs one")
        return Path(self.path)
