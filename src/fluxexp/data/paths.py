"""Paths from user input."""

from __future__ import annotations

import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def expanded(text: str) -> Path:
    """`text` as a path, with `~` replaced by the home folder if this user exists."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def printable(text: str) -> str:
    r"""`text` with escapes (`\udc..`) for bytes of a file name that are not UTF-8, so that UTF-8 can encode it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_url(text: str) -> bool:
    """Whether `text` is a URL, such as `https://example.com/cat.png`."""
    return _URL.match(text) is not None
