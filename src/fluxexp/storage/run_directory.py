"""The directory of a run, with its reader and writer, and the places of the directories of runs and sweeps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from fluxexp.address import Address
from fluxexp.config.schema import OutputConfig
from fluxexp.storage.result_directory import ResultDirectory
from fluxexp.storage.run_reader import RunReader
from fluxexp.storage.run_writer import RunWriter

RUNS_ROOT = Address.of("outputs")
"""Where runs are, relative to the working directory, unless `output.dir` says otherwise."""
SWEEPS_ROOT = Address.of("multirun")
"""Where sweeps and their points are, relative to the working directory, unless `output.dir` says otherwise."""


@dataclass(frozen=True)
class RunDirectory(ResultDirectory):
    """One run (docs/run-directory.md)."""

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


def results_root(output: OutputConfig, default: Address) -> Address:
    """The parent of run and sweep directories: `output.dir`, or `default` if it is null."""
    if not output.dir:
        return default
    address = Address.of(output.dir)
    return Address.of(address.local_path().expanduser()) if address.is_local else address


def run_directory(name: str, fingerprint: str, output: OutputConfig, default: Address) -> RunDirectory:
    """The directory of the run with this name and fingerprint."""
    return RunDirectory(results_root(output, default) / f"{name}-{fingerprint}", output.retry_s)
