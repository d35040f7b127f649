"""Paths and file names as people have them."""

from __future__ import annotations

from pathlib import Path


def expanded(text: str) -> Path:
    """`text` as a path, `~` as the home folder where there is such a user."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def printable(text: str) -> str:
    r"""`text` with `\udc..` spelled out for each byte of a file name that is not UTF-8, so that it can be written."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
