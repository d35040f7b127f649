"""Provenance of a result: versions of fluxexp and its packages, and the revision of the source."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("fluxexp", "torch", "diffusers", "transformers", "accelerate", "hydra-core", "wandb", "pillow")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of relevant packages that are installed."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_revision() -> str | None:
    """Commit of the checkout that fluxexp runs from, with `-dirty` for uncommitted changes; None outside of one."""
    source = Path(__file__).resolve().parent
    try:
        _git(source, "ls-files", "--error-unmatch", Path(__file__).name)  # fails in another project's repository
        commit = _git(source, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(source, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=5
    )
    return done.stdout.strip()
