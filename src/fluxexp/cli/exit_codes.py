"""The exit codes of the program. README.md and docs/faults.md describe them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from fluxexp.errors import ConfigError, FluxexpError
from fluxexp.experiment import Outcome


class ExitCode(IntEnum):
    """What the exit code of the program says. 130 and 143: a second SIGINT or SIGTERM ended it at once."""

    COMPLETE = 0
    INCOMPLETE = FluxexpError.exit_code
    """Tasks or derived files are missing, or an error ended the session. The same command continues."""
    CONFIG_ERROR = ConfigError.exit_code
    """The config cannot be run, or no point of a sweep can."""
    FAILED_TASKS = 3
    """The run is complete, but some tasks failed."""
    TOO_MANY_FAILURES = 4
    """The session stopped because too many tasks failed (`failures.max_failure_rate`)."""
    INTERRUPTED = 75
    """A signal stopped the session. What was made is saved, and the same command continues. 75 is EX_TEMPFAIL of
    sysexits.h: try again."""


_WORST_FIRST = (
    ExitCode.INTERRUPTED,
    ExitCode.TOO_MANY_FAILURES,
    ExitCode.INCOMPLETE,
    ExitCode.CONFIG_ERROR,
    ExitCode.FAILED_TASKS,
    ExitCode.COMPLETE,
)
"""A sweep in which something is missing is not complete, although other points have failed tasks."""
_BY_STATUS = {
    "complete": ExitCode.COMPLETE,
    "incomplete": ExitCode.INCOMPLETE,
    "failed": ExitCode.CONFIG_ERROR,
    "complete_with_failures": ExitCode.FAILED_TASKS,
}


def exit_code_of(outcome: Outcome) -> ExitCode:
    """The exit code for the outcome of one run. `worst` makes that of the program from those of all runs."""
    if outcome.is_interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.TOO_MANY_FAILURES if outcome.is_stopped else _BY_STATUS[outcome.status]


def worst(codes: Sequence[int]) -> int:
    """The exit code of the program: the one that matters most among those of all runs."""
    return min(codes, key=lambda code: _WORST_FIRST.index(ExitCode(code)))
