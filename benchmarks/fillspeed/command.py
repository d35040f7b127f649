"""The command that figures came from."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command() -> str:
    """As it was typed, but with files by their names: where they lay is of no use to anybody else."""
    arguments = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
