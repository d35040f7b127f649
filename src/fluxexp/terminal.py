"""Prints messages. A closed pipe never stops the run."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(line: str, *, urgent: bool = False) -> None:
    """Print `line`, to stderr if `urgent`. If the stream is missing or closed, nothing happens."""
    stream = sys.stderr if urgent else sys.stdout
    if stream is None:
        return
    with suppress(OSError, ValueError):
        print(line, file=stream, flush=True)
