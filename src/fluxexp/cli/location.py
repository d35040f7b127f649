"""Find `conf/`: inside the installed package, or next to `src/` in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def config_directory() -> Path:
    """Absolute path of `conf/`."""
    installed = _PACKAGE / "conf"
    return installed if installed.is_dir() else _PACKAGE.parent.parent / "conf"
