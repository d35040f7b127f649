"""Files of samples: a path, or a source, which gives bytes by name, such as a URL or a member of a tar."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes

from fluxexp.data.file_access import open_regular
from fluxexp.data.remote_files import file_version, read_url
from fluxexp.errors import SampleError


class FileSource(Protocol):
    """The bytes of one file. `str` gives its name for messages. A source holds no bytes that it can read again."""

    @property
    def is_remote(self) -> bool:
        """Whether reading costs requests over the network."""
        ...

    def read(self) -> bytes:
        """All bytes. Raises OSError or SampleError if that is not possible."""
        ...

    def content(self) -> str:
        """What changes with the content: a hash, or the version that a server gives. Raises as `read` does."""
        ...


File: TypeAlias = Path | FileSource


def open_file(file: File) -> BinaryIO:
    """Open a file for reading. The stream can seek.

    Raises:
        OSError: the file cannot be opened or read.
        SampleError: it is not a regular file, or it is damaged.
    """
    return open_regular(file) if isinstance(file, Path) else io.BytesIO(file.read())


def is_remote(file: File | None) -> bool:
    """Whether reading `file` costs requests over the network."""
    return file is not None and not isinstance(file, Path) and file.is_remote


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL."""

    url: str
    is_remote: bool = field(default=True, init=False)

    def __str__(self) -> str:
        return self.url

    def read(self) -> bytes:
        """All bytes."""
        return read_url(self.url)

    def content(self) -> str:
        """The version of the file that the server tells, else a hash of its bytes."""
        return file_version(self.url) or hashlib.sha256(self.read()).hexdigest()


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Bytes that a table contains, for the time in which one sample is read."""

    name: str
    data: bytes = field(repr=False)
    is_remote: bool = field(default=False, init=False)

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """All bytes."""
        return self.data

    def content(self) -> str:
        """A hash of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


def is_data_url(text: str) -> bool:
    """Whether `text` contains a file itself: `data:image/png;base64,...`."""
    return text[:5].lower() == "data:" and "," in text


def data_source(text: str, name: str) -> BytesSource:
    """The bytes in a data URL (RFC 2397).

    Raises:
        SampleError: the base64 is damaged.
    """
    header, _, body = text.partition(",")
    if not header.lower().endswith(";base64"):
        return BytesSource(name, unquote_to_bytes(body))
    try:
        return BytesSource(name, base64.b64decode(unquote_to_bytes(body), validate=True))
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"{name}: the data URL is not valid base64 ({error})") from None
