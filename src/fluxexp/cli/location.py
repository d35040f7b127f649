"""Find configs: `conf/` inside the installed package, or beside `src/` in a checkout, and the user's own folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
MAIN_CONFIG = "config"
"""The config that fluxexp composes, unless `--config-name` names another one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which config is composed, from which folders."""

    directory: Path
    """fluxexp's configs."""
    config_name: str = MAIN_CONFIG
    config_dir: Path | None = None
    """Absolute path of the user's configs."""


def config_directory() -> Path:
    """Absolute path of `conf/`."""
    installed = _PACKAGE / "conf"
    return installed if installed.is_dir() else _PACKAGE.parent.parent / "conf"
