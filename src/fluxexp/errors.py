"""All errors that fluxexp raises on purpose. Their messages are written for users.

The class decides what the program does. A `ConfigError` ends it before anything is loaded (exit code 2). A
`SampleError` becomes a failed record, and the run continues. Any other `FluxexpError` ends the rank that raised it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class FluxexpError(Exception):
    """Base class of all errors raised on purpose. They are printed without a traceback."""

    exit_code = 1
    is_printed_elsewhere = False
    """Whether another rank prints the error, so that this rank exits silently."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a config: the key, the value, the reason, and what to do instead."""

    key: str
    reason: str
    value: object = None
    hint: str | None = None

    def __str__(self) -> str:
        given = f"={self.value!r}" if self.value is not None else ""
        hint = f"\n      {self.hint}" if self.hint else ""
        return f"{self.key}{given}: {self.reason}{hint}"


class ConfigError(FluxexpError):
    """A config that cannot be run. Holds all problems found, so that one attempt shows all of them."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(f"  {problem}" for problem in self.problems))


class SampleError(FluxexpError):
    """A sample cannot be read or prepared. The run records it as failed and continues."""


class ModelError(FluxexpError):
    """A model cannot be loaded, or an optimization cannot be applied to it."""


class StorageError(FluxexpError):
    """A run directory cannot be used: it belongs to another config, its manifest is damaged, or the disk is full."""


class RunError(FluxexpError):
    """A run or a sweep that Python code started did not end as it should (`fluxexp.run`, `fluxexp.sweep`)."""

    def __init__(self, text: str, exit_code: int, log: str = "", directory: str | None = None) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        """Of the program (docs/faults.md)."""
        self.log = log
        """The end of what the program printed."""
        self.directory = directory
        """Where the results are that exist, for `fluxexp.load`; None if the program ended before it knew."""


class ComparisonError(FluxexpError):
    """Two runs cannot be compared: they have no common images, or a score is missing."""

    exit_code = 65  # EX_DATAERR of sysexits.h: 2 says that a gate is undecided


class RankError(FluxexpError):
    """Ranks disagree, a rank did not finish its work, or the connection to other ranks is lost."""


class LostRankError(RankError):
    """Another rank is lost: its process is dead, or it hangs. This rank can continue without it."""


class PeerError(FluxexpError):
    """A batch of a replica failed on another rank. This rank can continue."""


class MainRankError(RankError):
    """Rank 0 cannot prepare the run, and prints the reason. The exit code is that of rank 0's error."""

    is_printed_elsewhere = True

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class SearchEnd(FluxexpError):  # noqa: N818
    """The search on rank 0 is over. Not a failure."""


class RankFailedError(RankError):
    """This rank failed. Rank 0 prints the error at the end of the run."""

    is_printed_elsewhere = True
