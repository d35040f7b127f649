"""Files of compiled code and measurements between runs, and locks, so that only one process makes each of them.

All are in the user's cache directory. A file lock lets one process of a machine compile a shape while the others wait
for its result. Ranks exchange no messages for that, and the system releases the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fluxexp.config.user_cache import cache_directory as cache_directory
from fluxexp.config.user_cache import exclusively as exclusively
from fluxexp.config.user_cache import lock_descriptor
from fluxexp.records import content_hash


def cache_file(kind: str, key: Sequence[Any], suffix: str) -> Path:
    """The cache file of `kind` for `key`. Makes its directory if possible."""
    directory = cache_directory() / kind
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{content_hash(list(key))}{suffix}"


def keep_compiled_code() -> Path:
    """Let the compiler keep its code in the cache directory, unless the user set another one. Returns the directory."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_directory() / "compiled")
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


@contextmanager
def first_alone(key: Sequence[Any]) -> Generator[None]:
    """One process runs the body first. The waiting processes then run it together, with the first one's cache."""
    with lock_descriptor(cache_file("locks", key, ".lock")) as lock:
        if lock is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is the first: a shared lock waits for it, not for its peers
                fcntl.flock(lock, fcntl.LOCK_SH)
        yield
