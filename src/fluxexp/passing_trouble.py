"""Which errors of storage and network may pass by themselves, so that the same operation is worth another try."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fluxexp.errors import SampleError

T = TypeVar("T")

PASSING = frozenset(
    {
        errno.ENOSPC,  # somebody can free space
        errno.EDQUOT,
        errno.EIO,  # a network file system or a volume that reconnects
        errno.EREMOTEIO,
        errno.ESTALE,  # a file server that was restarted
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENOTCONN,  # FUSE: "transport endpoint is not connected"
        errno.ESHUTDOWN,
        errno.ENOLINK,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EMFILE,  # another thread can close its files
        errno.ENFILE,
    }
)
"""Not among them: missing permissions, a read-only file system, a file size limit, names and types of files. They stay
until somebody changes the configuration, so waiting would only hide them."""


def is_passing(error: BaseException | None) -> bool:
    """Whether `error`, or an error that caused it, is a trouble that may pass."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        if isinstance(error, OSError) and error.errno in PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


READ_WAITS_S = (0.2, 1.0, 3.0)
"""Pauses between the tries to read a sample, in seconds."""


def read_patiently(
    read: Callable[[], T], waits_s: Sequence[float] = READ_WAITS_S, sleep: Callable[[float], None] = time.sleep
) -> T:
    """The sample that `read` returns. Tries again after each of `waits_s` (seconds) while its error may pass.

    Raises:
        SampleError: all tries failed; the message says how many there were.
        Exception: an error that does not pass.
    """
    for wait_s in waits_s:
        try:
            return read()
        except Exception as error:
            if not is_passing(error):
                raise
        sleep(wait_s)
    try:
        return read()
    except Exception as error:
        if not is_passing(error):
            raise
        raise SampleError(f"{error} (tried {len(waits_s) + 1} times)") from error
