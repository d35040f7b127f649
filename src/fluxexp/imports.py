"""Imports of large libraries without the garbage collector, which finds nothing there and takes a quarter of the time.

Importing diffusers makes millions of objects that stay, and the collector visits all of them again and again.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Generator[None]:
    """Around imports of modules alone: what is alive at its end, no later collection visits again.

    So nothing that is to be freed later, a model above all, may be made inside.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
