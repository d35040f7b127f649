"""Writes `report.html` into the directory of a run or a sweep. It reads only the files there and the dataset."""

from __future__ import annotations

from collections.abc import Sequence

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.report import page
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.run_data import RunData, read_run
from fluxexp.report.run_report import run_page
from fluxexp.report.selection import MAX_RESULTS
from fluxexp.report.sweep_data import Runs, read_sweep
from fluxexp.report.sweep_report import sweep_page
from fluxexp.storage.result_files import CONFIG, REPORT, SWEEP
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory

_FULL_PAGES = 2
"""All points of a sweep together show this many times `MAX_RESULTS`, so that large sweeps do not take much longer."""
_MIN_RESULTS = 40
"""Each point shows at least this many results."""


def write_report(
    address: Address, opened: Sequence[RunDirectory] = (), opened_sweep: SweepDirectory | None = None
) -> Address:
    """Write the report of a run or a sweep. For a sweep, also write the reports of its points.

    Missing or damaged files are not an error: the page lists them.

    Args:
        address: of the run or sweep.
        opened: runs that are already open. The report does not read their manifests again.
        opened_sweep: the sweep, if it is already open.

    Returns:
        address of the report.

    Raises:
        StorageError: `address` is not that of a run or a sweep, or it is not writable.
    """
    runs = {run.address: run for run in opened}
    sweep = opened_sweep or SweepDirectory(address)
    if sweep.reader.is_sweep():
        _write_sweep(sweep, runs)
    else:
        run = runs.get(address) or RunDirectory(address)
        if not run.reader.is_run():
            raise StorageError(
                f"{address} is neither the directory of a run nor of a sweep: it has no {CONFIG} and no {SWEEP}"
            )
        data = read_run(run)
        _write_run(data, run_page(data, Samples(data.config)))
    return address / REPORT


def _write_run(data: RunData, html: str) -> None:
    data.directory.writer.write_derived(REPORT, page.encode(html))


def _write_sweep(directory: SweepDirectory, known: Runs) -> None:
    """Write the pages of the sweep and of its points. Points with the same dataset share the loaded samples."""
    sweep = read_sweep(directory, known)
    runs = [point.run for point in sweep.points if point.run is not None]
    opened: dict[str, Samples] = {}
    limit = max(_MIN_RESULTS, MAX_RESULTS * _FULL_PAGES // max(1, len(runs)))
    for run in runs:
        name = _dataset(run)
        if name not in opened:
            opened[name] = Samples(run.config)
        _write_run(run, run_page(run, opened[name], min(limit, MAX_RESULTS)))
    # If the datasets differ, most sample keys differ, too. The page shows the inputs of the first dataset and says so.
    html = sweep_page(sweep, next(iter(opened.values()), Samples({})), len(opened) > 1)
    directory.write_derived(REPORT, page.encode(html))


def _dataset(run: RunData) -> str:
    """Identity of the dataset of a run. It leaves out keys that do not change what a sample shows."""
    values = run.setting("dataset")
    if not isinstance(values, dict):
        return ""
    return repr({name: value for name, value in values.items() if name not in ("length", "limit", "placement")})
