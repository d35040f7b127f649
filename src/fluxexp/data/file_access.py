"""Which files a dataset may read: regular files, inside of its folders or of `dataset.allowed_folders`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from fluxexp.data.paths import expanded, is_url
from fluxexp.errors import SampleError

KEY = "dataset.allowed_folders"
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
MAX_TEXT_BYTES = 1 << 20
"""The longest caption that is read."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Opening a FIFO would wait for a writer, and reading a device never ends.

    Raises:
        OSError: the file cannot be opened.
        SampleError: it is not a regular file.
    """
    _require_regular(path, path.stat().st_mode)
    # Without O_NONBLOCK, a FIFO that takes the place of the file just now would still stop this thread.
    stream = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    try:
        _require_regular(path, os.fstat(stream.fileno()).st_mode)
    except SampleError:
        stream.close()
        raise
    return stream


def read_text(path: Path) -> str:
    """The text of a small file in UTF-8.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
        SampleError: it is not a regular file, or has more than 1 MiB.
    """
    with open_regular(path) as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise SampleError(f"{path}: has more than {MAX_TEXT_BYTES} bytes, which is too long for a caption")
    return content.decode("utf-8-sig")


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise SampleError(f"{path}: is {kind}, and fluxexp reads only regular files; replace it by a copy")


class AllowedFolders:
    """The folders whose files samples may use. Links, absolute paths and `..` can lead out of them.

    Args:
        own: the folders of the dataset.
        allowed: `dataset.allowed_folders`, which may begin with `~`, or are URLs.
        own_urls: the same as `own`, for a dataset behind a URL.
    """

    def __init__(self, own: Sequence[Path], allowed: Sequence[str], own_urls: Sequence[str] = ()) -> None:
        self._folders = [*own, *(expanded(folder) for folder in allowed if not is_url(folder))]
        self._urls = [f"{url.rstrip('/')}/" for url in (*own_urls, *filter(is_url, allowed))]
        self._has_all = "/" in allowed
        self._parents: dict[str, bool] = {}

    def contain(self, path: Path | str) -> bool:
        """Whether the file is inside, after all links are followed."""
        return self._contain(os.path.realpath(path))

    def contain_by_name(self, path: Path) -> bool:
        """Like `contain`, but the file itself counts as no link, so that a table with many rows opens quickly."""
        folder = os.path.dirname(os.path.normpath(path))  # noqa: PTH120 (a table has many rows, and pathlib is slow)
        if folder not in self._parents:
            self._parents[folder] = self._contain(os.path.join(os.path.realpath(folder), "x"))
        return self._parents[folder]

    def require(self, path: Path) -> None:
        """Raise a SampleError if the file is not inside."""
        try:
            real = os.path.realpath(path)
        except ValueError as error:
            raise SampleError(f"{path!r}: is not a path ({error})") from None
        if not self._contain(real):
            raise SampleError(f"{path}: {self.reason(real)}")

    def contain_url(self, url: str) -> bool:
        """Whether the URL is inside. `..` in a URL is never read (`remote_files.py`)."""
        return self._has_all or any(url.startswith(root) for root in self._urls)

    def require_url(self, url: str) -> None:
        """Raise a SampleError if the URL is not inside."""
        if not self.contain_url(url):
            raise SampleError(f"{url}: leads out of the dataset; {remedy([url])}")

    def reason(self, real: str) -> str:
        """Why the file `real` is not read, and the remedy."""
        return f"leads out of the dataset, to {real}; {remedy([real])}"

    def _contain(self, real: str) -> bool:
        return any(f"{real}/".startswith(root) for root in self._roots)

    @cached_property
    def _roots(self) -> list[str]:
        return [os.path.realpath(folder).rstrip("/") + "/" for folder in self._folders]


def remedy(files: Iterable[str]) -> str:
    """How to allow `files`: the folder that contains them."""
    if url := next(filter(is_url, files := list(files)), None):
        scheme, _, rest = url.partition("://")
        return f"copy the files into the dataset, or set {KEY}=[{scheme}://{rest.partition('/')[0]}]"
    folders = [os.path.dirname(file) for file in files]  # noqa: PTH120 (as above)
    common = os.path.commonpath(folders)
    return f"copy it into the dataset, or set {KEY}=[{folders[0] if common == '/' else common}]"
