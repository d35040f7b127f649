"""Import large libraries with the garbage collector off, which saves a quarter of the import time.

Importing diffusers creates millions of permanent objects, and the collector would scan them repeatedly.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def large_imports(module: str) -> Generator[None]:
    """Context for the import of `module`, and nothing else: later collections skip all objects alive at its end.

    Does nothing if `module` is already imported: then a model may be alive, which must be freed later.
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
