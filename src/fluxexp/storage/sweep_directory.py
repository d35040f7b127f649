"""One sweep's own directory: sweep.json, distances from reference images, and events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.storage.patience import READING_S
from fluxexp.storage.result_directory import ResultDirectory
from fluxexp.storage.result_files import SUMMARY, SWEEP
from fluxexp.storage.result_reader import ResultReader
from fluxexp.storage.run_directory import RUNS_ROOT, SWEEPS_ROOT, RunDirectory
from fluxexp.storage.scores import ScoreWriter
from fluxexp.storage.summary_shapes import SWEEP as SWEEP_SHAPE


class SweepReader(ResultReader):
    """Reads one sweep."""

    def lenient(self) -> SweepReader:
        """A lenient reader of the same sweep. It shares the cache of this reader and has its own notes."""
        return SweepReader(self.store, is_lenient=True, cache=self.cache)

    def is_sweep(self) -> bool:
        """Whether the store contains a sweep."""
        return self.store.exists(SWEEP)

    def values(self) -> dict[str, Any] | None:
        """sweep.json; None if there is none."""
        return self.read_json(SWEEP, "; the same command writes it again", SWEEP_SHAPE)


@dataclass(frozen=True)
class SweepDirectory(ResultDirectory):
    """One sweep (docs/run-directory.md). The directories of its points are beside its own."""

    @cached_property
    def reader(self) -> SweepReader:
        """Reads the sweep, strictly."""
        return SweepReader(self.store)

    def scores(self) -> ScoreWriter:
        """A new stream of distances from reference images, for one thread."""
        return ScoreWriter(self.store)

    def write(self, values: Mapping[str, Any]) -> None:
        """Write sweep.json.

        Raises:
            StorageError: it cannot be written.
        """
        self.write_derived(SWEEP, f"{json.dumps(values, indent=2, ensure_ascii=False)}\n".encode())

    def write_derived(self, key: str, data: bytes) -> None:
        """Write a file that fluxexp can make again, for example the report.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            self.store.put(key, data)
        except OSError as error:
            raise StorageError(f"{self.address / key} cannot be written: {error}") from error

    def run_of(self, point: Mapping[str, Any]) -> RunDirectory | None:
        """The run of a point as sweep.json lists it; None for a point that could not be run."""
        name = point["directory"]
        address = self.address.sibling(name) if isinstance(name, str) else None
        return None if point["status"] == "failed" or address is None else RunDirectory(address, self.retry_s)

    def relative(self, run: Address) -> str:
        """How sweep.json names the directory of a run."""
        return run.relative_to(self.address.parent)


def sweep_directory(name: str, digest: str, root: Address, retry_s: float = READING_S) -> SweepDirectory:
    """The directory of the sweep with this name and this hash of its points, beside its runs in `root`."""
    return SweepDirectory(root / f"{name}-sweep-{digest}", retry_s)


def newest_result() -> Address:
    """The newest finished run or sweep under `RUNS_ROOT` and `SWEEPS_ROOT`, which are local directories.

    Raises:
        StorageError: there is none.
    """
    roots = (RUNS_ROOT, SWEEPS_ROOT)
    found = (path for root in roots for name in (SUMMARY, SWEEP) for path in root.local_path().glob(f"*/{name}"))
    finished = sorted(found, key=lambda path: path.stat().st_mtime)
    if not finished:
        raise StorageError(
            f"no finished run or sweep under {' or '.join(f'{root}/' for root in roots)}: "
            "give the directory of a run or a sweep, or make a run first (for example with `make fill`)"
        )
    return Address.of(finished[-1].parent)
