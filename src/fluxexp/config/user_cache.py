"""Where fluxexp keeps what it need not make twice: its part of the user's cache directory."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """fluxexp's part of the user's cache directory; it need not be there."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (never raises)
    return Path(root) / "fluxexp"
