"""The C library's allocator, told to keep what it has: activations of a CPU model are as large as they are short-lived.

By default glibc hands each block above 32 MiB back to the kernel as soon as it is free, and gets the next one page by
page, each zeroed: up to a quarter of the time of a VAE's decoder. Knows no model.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_THRESHOLD = 1 << 30


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to a GiB for this process; whether the C library knows how. Changes no result."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _THRESHOLD), mallopt(_M_TRIM_THRESHOLD, _THRESHOLD)])
