"""Imports of large libraries without the garbage collector, which finds nothing there and takes a quarter of the time.

Importing diffusers makes millions of objects that stay, and the collector visits all of them again and again.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def large_imports(module: str) -> Generator[None]:
    """Around the import of `module` and nothing else: what is alive at its end, no later collection visits again.

    Only the first time: by the next, a model may be alive that is to be freed later.
    """
    if module in sys.modules:
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
