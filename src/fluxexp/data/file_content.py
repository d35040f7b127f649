"""A short hash of the content of a sample's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fluxexp.config.file_hashes import file_hash
from fluxexp.records import content_hash


def files_content(paths: Sequence[Path | None]) -> str | None:
    """Hash of the content of files, in order, 16 hex digits; None if one of them cannot be read. A path can be None."""
    try:
        return content_hash([None if path is None else file_hash(path) for path in paths])
    except (OSError, ValueError):
        return None
