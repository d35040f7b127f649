"""The index of a tar of webdataset: where each member is. It is made once on a machine, from the headers alone.

An index belongs to a path, a size, an inode and a modification time, or to a URL and the version that its server tells.
It is stored in the user's cache. A damaged or lost cache only costs time.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fluxexp.config.file_hashes import Stamp, file_stamp
from fluxexp.config.user_cache import cache_directory, exclusively
from fluxexp.data.file_access import open_regular
from fluxexp.data.packed_texts import PackedTexts
from fluxexp.data.paths import is_url
from fluxexp.data.remote_files import file_version, opened_url, read_url
from fluxexp.errors import SampleError

_FORMAT = 1
"""Increase it when the arrays of a stored index change."""
_NAME = re.compile(r"((?:.*/)?[^./][^/.]*)\.([^/]+)", re.DOTALL)
"""Key and extensions of a member: `00/cat.mask.png` has the key `00/cat` and the extensions `mask.png`."""
_MAX_EXTENSIONS = 60_000
_MEMBER = np.dtype([("offset", "<u8"), ("size", "<u8"), ("mtime", "<i8"), ("sample", "<u4"), ("extension", "<u2")])
Members = npt.NDArray[Any]


class TarError(ValueError):
    """A file is not a tar that can be indexed."""


@dataclass(frozen=True, slots=True, eq=False)
class TarIndex:
    """The members of one tar, in its order. Members of a sample follow each other."""

    place: str
    """Path or URL of the tar."""
    stamp: Stamp | None
    """Of a local tar, when it was indexed."""
    keys: PackedTexts
    """One for each sample."""
    extensions: tuple[str, ...]
    """In lower case, by the number in `members`."""
    members: Members
    starts: npt.NDArray[np.int64]
    """The number of the first member of each sample, and at the end the number of all members."""
    damage: str | None = None
    """Why the rest of the tar cannot be read; None if it is whole."""

    def of_sample(self, number: int) -> Members:
        """The members of a sample."""
        return self.members[self.starts[number] : self.starts[number + 1]]

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of a member.

        Raises:
            OSError: the tar cannot be read.
            SampleError: it ends before the member does, or has changed.
        """
        if self.stamp is None:
            data = read_url(self.place, offset, offset + size) if size else b""
        else:
            with open_regular(Path(self.place)) as stream:
                if file_stamp(os.fstat(stream.fileno())) != self.stamp:
                    raise SampleError(f"{self.place}: changed after it was opened; start the run again")
                data = os.pread(stream.fileno(), size, offset)
        if len(data) != size:
            raise SampleError(f"{self.place}: ends in the middle of a member; copy the tar again")
        return data


def open_index(place: str) -> TarIndex:
    """The index of a tar, from the cache or from its headers.

    Raises:
        OSError, SampleError: the file cannot be read.
        TarError: it is not a tar, or it is compressed.
    """
    if is_url(place):
        stamp, version = None, file_version(place)
        identity = None if version is None else f"{place}\n{version}"
    else:
        place = os.path.realpath(place)
        stamp = file_stamp(Path(place).stat())
        identity = f"{place}\n{stamp}"
    if identity is None:
        return _scan_place(place, stamp)
    name = hashlib.sha256(f"{_FORMAT}\n{identity}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    file = cache_directory() / "tars" / f"{name}.npz"
    if (index := _stored(file, place, stamp)) is not None:
        return index
    with exclusively(file.with_suffix(".lock")):
        index = _stored(file, place, stamp) or _scan_place(place, stamp)
        _store(file, index)
    return index


def _scan_place(place: str, stamp: Stamp | None) -> TarIndex:
    if stamp is None:
        with opened_url(place) as stream:
            return _scan(place, stamp, stream)
    with open_regular(Path(place)) as stream:
        return _scan(place, stamp, stream)


def _scan(place: str, stamp: Stamp | None, stream: BinaryIO) -> TarIndex:
    keys, numbers, damage = PackedTexts(), dict[str, int](), None
    columns = {name: array(code) for name, code in zip(_MEMBER.names or (), "QQqLH", strict=True)}
    last: str | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := _next(tar)) is not None:
                match = _NAME.fullmatch(member.name) if member.isreg() else None
                if match is None:
                    continue
                if match[1] != last:
                    last = match[1]
                    keys.append(last)
                if len(numbers) == _MAX_EXTENSIONS:
                    raise TarError("has too many kinds of members: it is not in the layout of webdataset")
                extension = numbers.setdefault(match[2].lower(), len(numbers))
                values = (member.offset_data, member.size, int(member.mtime), len(keys) - 1, extension)
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    except tarfile.TarError as error:
        if not len(keys):
            hint = "; a compressed tar has no random access, so decompress it" if _is_compressed(stream) else ""
            raise TarError(f"is not a tar ({error}){hint}") from None
        damage = str(error)
    members = np.zeros(len(columns["offset"]), _MEMBER)
    for name, column in columns.items():
        members[name] = column
    return _index(place, stamp, keys, tuple(numbers), members, damage)


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    tar.members = []  # type: ignore[attr-defined] # tarfile would keep all headers
    return tar.next()


def _is_compressed(stream: BinaryIO) -> bool:
    stream.seek(0)
    return stream.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))


def _index(
    place: str, stamp: Stamp | None, keys: PackedTexts, names: tuple[str, ...], members: Members, damage: str | None
) -> TarIndex:
    starts = np.searchsorted(members["sample"], np.arange(len(keys) + 1))
    return TarIndex(place, stamp, keys, names, members, starts, damage)


def _store(file: Path, index: TarIndex) -> None:
    texts = {"keys": "\0".join(index.keys), "extensions": "\0".join(index.extensions), "damage": index.damage or ""}
    raw = {name: np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8) for name, text in texts.items()}
    part = file.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # without a writable cache, later processes read the headers again
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, members=index.members, **raw)
        part.replace(file)


def _stored(file: Path, place: str, stamp: Stamp | None) -> TarIndex | None:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            members = arrays["members"]
            texts = {name: arrays[name].tobytes().decode("utf-8", "surrogatepass") for name in ("keys", "extensions")}
            damage = arrays["damage"].tobytes().decode() or None
    except Exception:  # damaged files raise errors of any type
        return None
    keys = PackedTexts(texts["keys"].split("\0") if len(members) else ())
    extensions = tuple(texts["extensions"].split("\0"))
    if members.dtype != _MEMBER or (len(members) and int(members["sample"][-1]) != len(keys) - 1):
        return None
    return _index(place, stamp, keys, extensions, members, damage)
