"""`python -m fluxexp`, `accelerate launch -m fluxexp`, `torchrun -m fluxexp`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fluxexp.cli import main


def _run() -> NoReturn:
    """Run the command line, and leave without taking the interpreter apart: with torch loaded that takes half a second.

    All that has to be closed is closed by then: files, threads, W&B's process and the process group.
    """
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                continue  # nobody listens any more
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _run()
