"""`python -m fluxexp`, `accelerate launch -m fluxexp`, `torchrun -m fluxexp`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fluxexp.cli import main


def _run() -> NoReturn:
    """Run the command line, then exit without interpreter shutdown, which takes half a second once torch is loaded.

    Files, threads, the W&B process and the process group are already closed at this point.
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
                continue  # the pipe is closed
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _run()
