"""A short hash of the content of a sample's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fluxexp.config.file_hashes import file_hash
from fluxexp.data.sources import File
from fluxexp.errors import SampleError
from fluxexp.records import content_hash


def files_content(paths: Sequence[File | None]) -> str | None:
    """Hash of the content of files, in order, 16 hex digits; None if one of them cannot be read. A file can be None."""
    try:
        return content_hash([None if file is None else _content(file) for file in paths])
    except (OSError, ValueError, SampleError):
        return None


def _content(file: File) -> str:
    return file_hash(file) if isinstance(file, Path) else file.content()
