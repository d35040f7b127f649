"""Files that appear complete or not at all: write to a temporary name in the same directory, fsync, rename."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

TEMPORARY_PREFIX = ".partial-"


def write_atomically(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Write `data` to `path` and replace earlier content. No reader and no crash ever leaves a part of it visible.

    `durable=False` skips the fsync: after a crash of the machine the new content can be missing.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_partial_files(directory: Path) -> int:
    """Remove the temporary files of killed processes in `directory`. Returns how many there were."""
    with os.scandir(directory) as entries:  # several times faster than `Path.glob`, in a folder of a million images
        leftovers = [entry.path for entry in entries if entry.name.startswith(TEMPORARY_PREFIX)]
    for file in leftovers:
        Path(file).unlink(missing_ok=True)
    return len(leftovers)
