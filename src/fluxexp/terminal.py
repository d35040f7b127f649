"""Prints messages. A closed pipe never stops the run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TextIO

_lock = threading.RLock()
_print_above: Callable[[str], None] | None = None
"""Prints a line above what a display rewrites; None while nothing is rewritten."""


def say(line: str, *, urgent: bool = False) -> None:
    """Print `line`, to stderr if `urgent`. If the stream is missing or closed, nothing happens.

    While bars are on the terminal, the line appears above them.
    """
    stream = sys.stderr if urgent else sys.stdout
    if stream is None:
        return
    with _lock, suppress(OSError, ValueError):
        if _print_above is not None and stream.isatty():
            _print_above(line)
        else:
            print(line, file=stream, flush=True)


@contextmanager
def printing_above(print_above: Callable[[str], None]) -> Generator[None]:
    """Within this context, `say` passes lines for the terminal to `print_above`. Contexts can be nested."""
    global _print_above
    with _lock:
        before, _print_above = _print_above, print_above
    try:
        yield
    finally:
        with _lock:
            _print_above = before


def can_rewrite(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal on which lines can be rewritten. TERM=dumb says that they cannot."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
