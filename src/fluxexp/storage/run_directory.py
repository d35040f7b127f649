"""The directory of a run, with its reader and writer, and the places of the directories of runs and sweeps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fluxexp.config.schema import OutputConfig
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.run_reader import RunReader
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.run_writer import RunWriter

RUNS_ROOT = Path("outputs")
"""Where runs are, relative to the working directory, unless `output.dir` says otherwise."""
SWEEPS_ROOT = Path("multirun")
"""Where sweeps and their points are, relative to the working directory, unless `output.dir` says otherwise."""


@dataclass(frozen=True)
class RunDirectory:
    """One run (docs/run-directory.md). Two directories are equal if their paths are."""

    path: Path
    """For the files of W&B, which need a real directory. All other code uses `reader` and `writer`."""

    @cached_property
    def store(self) -> RunStore:
        """Keeps the run's files."""
        return open_store(self.path)

    @cached_property
    def reader(self) -> RunReader:
        """Reads the run, strictly."""
        return RunReader(self.store)

    @cached_property
    def writer(self) -> RunWriter:
        """Writes the run."""
        return RunWriter(self.store, self.reader)

    def claimed(self) -> AbstractContextManager[None]:
        """Reserve the run for one session. See `RunStore.claim`."""
        return self.store.claim()


def open_store(path: Path) -> RunStore:
    """The store at `path`. All stores of a program are opened here."""
    return LocalStore(path)


def results_root(output: OutputConfig, default: Path) -> Path:
    """The parent of run and sweep directories: `output.dir`, or `default` if it is null."""
    return Path(output.dir).expanduser() if output.dir else default


def run_directory(name: str, fingerprint: str, output: OutputConfig, default: Path) -> RunDirectory:
    """The directory of the run with this name and fingerprint."""
    return RunDirectory(results_root(output, default) / f"{name}-{fingerprint}")
