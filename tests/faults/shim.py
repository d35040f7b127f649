"""Real errors of system calls: a library that is loaded before the C library, and small full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")


def failing(*faults: tuple[str, int, float, str]) -> Mapping[str, str]:
    """The environment of a process in which calls fail: (call, errno, seconds or -1, a part of the path) of each.

    Skips the test if there is no C compiler.
    """
    text = ",".join(f"{call}:{number}:{seconds}:{part}" for call, number, seconds, part in faults)
    return os.environ | {"LD_PRELOAD": str(_library()), "FAULTS": text}


@cache
def _library() -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = Path(tempfile.mkdtemp()) / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@contextmanager
def small_disk(directory: Path, kib: int) -> Generator[Path]:
    """A file system of `kib` KiB at `directory`. Skips the test if this user may not mount one."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(directory)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path, keep_kib: int = 0) -> Path:
    """Fill the disk of `directory`, except for `keep_kib`, with one file, which is returned: remove it to make room."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while stream.write(bytes(size)):
                    pass
            except OSError:
                pass
        stream.truncate(max(0, stream.tell() - (keep_kib << 10)))
    return ballast
