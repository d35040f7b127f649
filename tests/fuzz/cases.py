"""Runs cases in this process, and notes how each one ends."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fluxexp.errors import FluxexpError
from tests.fuzz.targets import TARGETS, Case
from tests.fuzz.watch import Watch

LIMIT_S = 20.0
"""A case that takes longer hangs."""


class _HangError(BaseException):
    """The time of a case is over. Not an Exception, so that no handler of the program stops it."""


@dataclass(slots=True)
class Tally:
    """Counts of one target."""

    num: int = 0
    num_refused: int = 0
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    wall_s: float = 0.0

    def add(self, other: Tally) -> None:
        """Add the counts of another part of the cases."""
        self.num += other.num
        self.num_refused += other.num_refused
        self.wall_s += other.wall_s
        self.tracebacks += other.tracebacks
        self.hangs += other.hangs
        self.writes += other.writes

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.tracebacks or self.hangs or self.writes)


def run_cases(name: str, first: int, num: int, seed: int, limit_s: float = LIMIT_S) -> Tally:
    """Run the cases `first` to `first + num` of one target, in a temporary folder."""
    tally = Tally()
    start_s = time.monotonic()
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fluxexp-fuzz-") as folder, Path(os.devnull).open("w") as nowhere:
        root = Path(folder) / "root"
        root.mkdir()
        os.chdir(root)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        try:
            case = TARGETS[name](root)
            watch = Watch(Path(folder))
            with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for number in range(first, first + num):
                    _run_case(case, f"{seed}:{name}:{number}", tally, limit_s)
            tally.writes += watch.found
        finally:
            os.chdir(here)
    tally.wall_s = time.monotonic() - start_s
    return tally


def _run_case(case: Case, label: str, tally: Tally, limit_s: float) -> None:
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        case(random.Random(label))
    except FluxexpError:
        tally.num_refused += 1
    except _HangError:
        tally.hangs.append(f"{label}: {_where()}")
    except BaseException:  # every other end of a case is a fault of the program, SystemExit as well
        tally.tracebacks.append(f"{label}: {_where()}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    tally.num += 1


def _hang(signum: int, frame: FrameType | None) -> None:
    raise _HangError


def _where() -> str:
    """The current error, and the innermost line of fluxexp that it passed."""
    kind, error, trace = sys.exc_info()
    frames = traceback.extract_tb(trace)
    own = next(
        (frame for frame in reversed(frames) if "fluxexp" in frame.filename and "fuzz" not in frame.filename), None
    )
    place = f"{Path(own.filename).name}:{own.lineno}" if own else "?"
    return f"{place} {kind.__name__ if kind else ''}: {error}"[:300]
