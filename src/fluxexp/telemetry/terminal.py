"""Says things to a person who may have stopped listening: a closed pipe ends the talk, never the run."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(line: str, *, urgent: bool = False) -> None:
    """Print `line`, to stderr if `urgent`. Nothing happens where nobody can read it."""
    stream = sys.stderr if urgent else sys.stdout
    if stream is None:
        return
    with suppress(OSError, ValueError):
        print(line, file=stream, flush=True)
