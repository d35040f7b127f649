"""Where datasets are: patterns of tars, and datasets on a hub or on this machine. No network."""

from __future__ import annotations

import os
import re
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_PATHS = 1_000_000


def expand_braces(pattern: str) -> list[str]:
    """The paths of a pattern: `{000..010}` are numbers with leading zeros, and `{a,b}` are alternatives.

    Raises:
        ValueError: there are more than a million.
    """
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], expand_braces(pattern[match.end() :])
    middle = _alternatives(match[1])
    if len(middle) * len(after) > MAX_PATHS:
        raise ValueError(f"means more than {MAX_PATHS} files")
    return [f"{before}{each}{rest}" for each in middle for rest in after]


def _alternatives(text: str) -> list[str]:
    bounds = _RANGE.fullmatch(text)
    if bounds is None:
        return text.split(",")
    first, last = int(bounds[1]), int(bounds[2])
    if abs(last - first) >= MAX_PATHS:
        raise ValueError(f"means more than {MAX_PATHS} files")
    step = 1 if last >= first else -1
    width = len(bounds[1]) if bounds[1].startswith("0") or len(bounds[1]) == len(bounds[2]) else 0
    return [str(number).zfill(width) for number in range(first, last + step, step)]


def folder_of(path: str) -> str:
    """The folder of the tars of `dataset.path`: what is before the first part with braces, or the folder itself."""
    fixed, brace, _ = path.partition("{")
    if not brace and not fixed.endswith(".tar"):
        return path.rstrip("/")
    return fixed.rpartition("/")[0] or "."


def is_local_dataset(path: str) -> bool:
    """Whether `dataset.path` of `dataset=hub` is on this machine."""
    return path.startswith((".", "/", "~")) or path.endswith(".parquet") or Path(path).expanduser().exists()


def hub_place(path: str) -> str:
    """A hub id as it is, and a local path as an absolute one."""
    return os.path.abspath(Path(path).expanduser()) if is_local_dataset(path) and "://" not in path else path
