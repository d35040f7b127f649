"""Files that appear whole or not at all: a temporary name beside the target, fsync, rename."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

TEMPORARY_PREFIX = ".partial-"


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that no reader, and no crash, ever sees half of it. Replaces what was there."""
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_partial_files(directory: Path) -> int:
    """Remove what a killed process left half-written; how many files that was."""
    leftovers = list(directory.glob(f"{TEMPORARY_PREFIX}*"))
    for file in leftovers:
        file.unlink(missing_ok=True)
    return len(leftovers)
