"""The end of the program: one error message for all ranks, and no process group left."""

from __future__ import annotations

import sys
import time
from typing import NoReturn

from fluxexp.cli.exit_codes import ExitCode
from fluxexp.errors import ConfigError, FluxexpError
from fluxexp.interruption import interruption
from fluxexp.rank_environment import RankEnvironment
from fluxexp.telemetry import say

_LAUNCHER_REACTS_S = 5.0


def die(error: FluxexpError, alone: bool) -> NoReturn:
    """Print `error` once for all ranks, and exit.

    Usually all ranks have the same error, and rank 0 prints it. Another rank first waits for the launcher to end it. If
    it does not, only this rank has the error (for example, a file is missing on one machine), and it prints it.

    Args:
        error: to print.
        alone: whether only this rank may have the error, so that it prints without waiting.
    """
    if interruption.requested is None and rank() != 0 and (not alone or error.is_printed_elsewhere):
        time.sleep(_LAUNCHER_REACTS_S)
    is_interrupted = rank() != 0 and interruption.requested is not None
    if not is_interrupted:  # the error follows from the end of rank 0, which ends first
        print_error(error)
    leave_process_group()
    sys.exit(ExitCode.INTERRUPTED if is_interrupted else error.exit_code)


def print_error(error: FluxexpError) -> None:
    """Print `error`, unless another rank prints it."""
    if error.is_printed_elsewhere:
        return
    title = "fluxexp: the config cannot be run" if isinstance(error, ConfigError) else "fluxexp:"
    separator = "\n" if isinstance(error, ConfigError) else " "
    say(f"{title}{separator}{error}", urgent=True)


def rank() -> int:
    """This process's rank, 0 without a launcher.

    If the launcher's variables are wrong, every process counts as rank 0, so that the error is printed.
    """
    try:
        return RankEnvironment.from_environment().rank
    except ConfigError:
        return 0


def leave_process_group() -> None:
    """Leave the process group, if there is one, without importing torch."""
    if "fluxexp.parallel.topology" in sys.modules:
        sys.modules["fluxexp.parallel.topology"].leave()
