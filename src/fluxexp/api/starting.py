"""`fluxexp.run` and `fluxexp.sweep`: start the program from Python code, and load what it has made.

The program runs in processes of its own, one for each GPU. So this process needs no GPU memory and no torch, keeps its
signals, and may do with CUDA what it likes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fluxexp.address import Address
from fluxexp.api.load import load_address
from fluxexp.api.override_text import Overrides, as_arguments, as_axes
from fluxexp.api.run_result import RunResult
from fluxexp.api.sweep_result import SweepResult
from fluxexp.errors import ConfigError, Problem, RunError, StorageError
from fluxexp.interruption import Interrupted
from fluxexp.launch import launch, refuse_inner_launch
from fluxexp.result_note import RESULT_FILE, noted_results
from fluxexp.visible_gpus import GpuChoice, choose_ranks

_LOG_LINES = 40
"""Number of lines of the program's output that an error shows."""
_LOADED = (0, 3)
"""Exit codes after which everything was tried; 3: some tasks failed, and their records have the errors."""
_INTERRUPTED = (75, 130, 143)
_MEANINGS = {
    1: "something is missing; the same call continues",
    2: "the config cannot be run",
    4: "too many tasks failed (failures.max_failure_rate)",
    137: "the process was killed, perhaps because memory ran out; the same call continues",
}
"""What the exit codes of the program mean (docs/faults.md)."""


def run(
    overrides: Overrides = (), *, gpus: GpuChoice = None, processes: int | None = None, quiet: bool = False
) -> RunResult:
    """Make a run, or continue it, as `fluxexp OVERRIDES` does. Waits for its end.

    Args:
        overrides: a command line (`"+experiment=fill sampling.steps=4"`), a list of overrides, or values by key
            (`{"+experiment": "fill", "dataset.prompt": "a cat, a dog"}`), which need no quotes.
        gpus: numbers of GPUs (as `nvidia-smi` shows them, or among those in CUDA_VISIBLE_DEVICES), or "all". None: one
            process on the first GPU, or on the CPU.
        processes: number of processes, instead of `gpus`; for several processes on a CPU.
        quiet: print nothing.

    Returns:
        the results. If some tasks failed, `failed` has their errors.

    Raises:
        ConfigError: an argument is wrong, or a launcher has already started several processes.
        RunError: the config cannot be run, or the run did not end. The message has the end of the output.
        KeyboardInterrupt: a signal stopped the run (Ctrl-C, or the stop button of a notebook). What was made is saved,
            and the same call continues.
    """
    result = _result(["--run", *as_arguments(overrides)], gpus, processes, quiet=quiet)
    assert isinstance(result, RunResult)
    return result


def sweep(
    axes: Mapping[str, Iterable[Any]],
    overrides: Overrides = (),
    *,
    gpus: GpuChoice = None,
    processes: int | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Make a sweep over all combinations of the values in `axes`, or continue it, as `fluxexp -m ...` does.

    Args:
        axes: the values of each key, for example `{"sampling.steps": [4, 8], "sampling.guidance": [1, 30]}`. May be
            empty if the experiment is a sweep itself (`+experiment=steps`).
        overrides: of all points, as for `run`.
        gpus: as for `run`.
        processes: as for `run`.
        quiet: print nothing.

    Raises:
        ConfigError: as for `run`; or an axis has no values, or the sweep is a search.
        RunError: as for `run`; also if a single point could not be run. `load(error.directory)` has the other points.
        KeyboardInterrupt: as for `run`.
    """
    arguments = [*as_arguments(overrides), *as_axes(axes)]
    for argument in arguments:
        if argument.startswith(("hydra/sweeper", "hydra/launcher")):
            hint = "use the command line, and read the results with fluxexp.load"
            raise ConfigError(Problem(argument, "makes several results, and fluxexp.sweep returns one", hint=hint))
    result = _result(["-m", *arguments], gpus, processes, quiet=quiet)
    assert isinstance(result, SweepResult)
    return result


def _result(
    arguments: Sequence[str], gpus: GpuChoice, processes: int | None, *, quiet: bool
) -> RunResult | SweepResult:
    refuse_inner_launch()
    ranks = choose_ranks(gpus, processes, os.environ)
    log = _Log(quiet=quiet)
    with tempfile.TemporaryDirectory(prefix="fluxexp-") as folder:
        file = Path(folder, "results")
        code = launch(arguments, ranks, output=log.add, variables={RESULT_FILE: str(file)})
        places = noted_results(file)
    if code in _INTERRUPTED:
        raise Interrupted("the run was interrupted; the same call continues it")
    if code not in _LOADED or not places:
        raise _error(code, log.text, places)
    return load_address(places[-1])


def _error(code: int, log: str, places: Sequence[Address]) -> RunError:
    if code in _LOADED:
        what = "fluxexp made no results: with debug.plan it only prints the plan"
    else:
        what = f"fluxexp ended with exit code {code}: {_MEANINGS.get(code, 'it ended unexpectedly')}"
    return RunError(f"{what}\n{log}", code, log, _loadable(places))


def _loadable(places: Sequence[Address]) -> str | None:
    """Where the program has begun to write results; None if it ended before."""
    with suppress(StorageError):
        return load_address(places[-1]).directory if places else None
    return None


class _Log:
    """Prints the lines of the program, and keeps the last ones for an error."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)

    def add(self, line: str) -> None:
        """Print and keep a line."""
        self._lines.append(line)
        if not self._quiet:
            print(line, file=sys.stdout, flush=True)

    @property
    def text(self) -> str:
        """The last lines."""
        return "\n".join(self._lines)
