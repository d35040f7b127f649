from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from fluxexp.parallel.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_reused_instead_of_new_pages() -> None:
    def pages(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], timeout=60))

    of_a_block = (64 << 20) // resource.getpagesize()
    assert pages("keep") < of_a_block / 10
    assert pages("default") > of_a_block / 10  # otherwise there is no memory to keep
