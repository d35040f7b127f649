"""Paths inside of a run's directory. A link there must not lead out of it: someone else may have made the directory.

The directory itself may be a link, or lie below one.
"""

from __future__ import annotations

import os
from pathlib import Path

from fluxexp.errors import StorageError

_REASON = "is a link that leads out of the run's directory; remove it (output.dir itself may be a link)"


class OutsideError(StorageError, OSError):
    """A path leads out of a run's directory. An OSError, too, because methods of stores raise these."""


def path_inside(root: Path, key: str, *, replaces: bool = False) -> Path:
    """The path of `key`, after a check that no part of it is a link out of `root`. One `lstat` for each part.

    Args:
        root: the directory of a run or a sweep.
        key: a relative POSIX path.
        replaces: whether the file itself is replaced or removed. Then the file may be a link, which is not followed.

    Raises:
        OutsideError: a part is such a link, or `key` leads out of `root` by itself.
    """
    parts = key.split("/")
    if ".." in parts or key.startswith("/"):
        raise OutsideError(f"{key} is not a path inside of the run's directory {root}")
    path = str(root)
    for part in parts[: len(parts) - replaces]:
        path = f"{path}/{part}"
        if os.path.islink(path) and not _is_inside(path, root):  # noqa: PTH114 (once for each image; pathlib is slow)
            raise OutsideError(f"{path} {_REASON}")
    return root / key


def leads_out(entry: os.DirEntry[str], root: Path) -> bool:
    """Whether an entry of a directory is a link out of `root`."""
    return entry.is_symlink() and not _is_inside(entry.path, root)


def require_no_links_out(root: Path) -> None:
    """Check the entries of the directory itself, before a session writes there. A missing directory has none.

    Raises:
        StorageError: one of them is a link that leads out.
    """
    try:
        with os.scandir(root) as entries:
            found = sorted(entry.path for entry in entries if leads_out(entry, root))
    except (FileNotFoundError, NotADirectoryError):
        return
    if found:
        raise StorageError(f"{found[0]} {_REASON}")


def _is_inside(path: str, root: Path) -> bool:
    return os.path.realpath(path).startswith(f"{os.path.realpath(root)}/")
