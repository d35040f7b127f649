"""Every error that fluxexp raises on purpose. Their messages are written for the person at the terminal.

The tree decides what the program does: a `ConfigError` ends it before anything is loaded (exit code 2), a
`SampleError` becomes a failed record and the run goes on, any other `FluxexpError` ends the rank it happens on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class FluxexpError(Exception):
    """Base of all errors raised on purpose: shown without a traceback."""

    exit_code = 1
    is_said_elsewhere = False
    """Whether another rank has told the person already: this one ends without a word."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config: which key, what was given, why not, and what to do instead."""

    key: str
    reason: str
    value: object = None
    hint: str | None = None

    def __str__(self) -> str:
        given = f"={self.value!r}" if self.value is not None else ""
        hint = f"\n      {self.hint}" if self.hint else ""
        return f"{self.key}{given}: {self.reason}{hint}"


class ConfigError(FluxexpError):
    """A config that cannot be run. Holds every problem found, so that one attempt shows them all."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(f"  {problem}" for problem in self.problems))


class SampleError(FluxexpError):
    """One sample that cannot be read or prepared; the run records it as failed and goes on."""


class ModelError(FluxexpError):
    """A model that cannot be loaded, or an optimization that cannot be applied to it."""


class StorageError(FluxexpError):
    """A run directory that cannot be used: another config's, a damaged manifest, a full disk."""


class RankError(FluxexpError):
    """Ranks that disagree, or one that did not finish its work."""


class PeerError(FluxexpError):
    """A batch that several ranks made together failed on another of them; this one can go on."""


class MainRankError(RankError):
    """Rank 0 could not prepare the run, and has said why."""

    exit_code = 2
    is_said_elsewhere = True


class SearchEnd(FluxexpError):  # noqa: N818
    """Rank 0 searches no further: nothing went wrong."""


class RankFailedError(RankError):
    """This rank failed; rank 0 says so for it, at the end of the run."""

    is_said_elsewhere = True
