"""The command that produced the figures."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command() -> str:
    """The command as typed, but with file names instead of absolute paths, which are useless on other machines."""
    arguments = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
