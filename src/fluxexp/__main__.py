"""`python -m fluxexp`, `accelerate launch -m fluxexp`, `torchrun -m fluxexp`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from fluxexp.interruption import interruption

_EXIT_INTERRUPTED = 75
"""`ExitCode.INTERRUPTED` of the command line, which may not be imported yet."""


def _run() -> NoReturn:
    """Run the command line, then exit without interpreter shutdown, which takes half a second once torch is loaded.

    Files, threads, the W&B process and the process group are already closed at this point.
    """
    code: object = 0
    interruption.listen()
    try:
        from fluxexp.cli import main  # late: the imports take seconds, in which a signal may come

        main()
    except KeyboardInterrupt:
        code = _EXIT_INTERRUPTED
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
