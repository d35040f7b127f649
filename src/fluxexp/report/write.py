"""Writes `report.html` into the directory of a run or of a sweep, only from the files there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fluxexp.errors import StorageError
from fluxexp.report import page
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.run_data import RunData, read_run
from fluxexp.report.run_report import run_page
from fluxexp.report.selection import MOST_RESULTS
from fluxexp.report.sweep_data import Runs, read_sweep
from fluxexp.report.sweep_report import sweep_page
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory

_PAGES = 2
"""Full pages of results that all points of a sweep share, so that the time does not grow with their number."""
_FEWEST = 40
"""Minimum number of results on the page of a point."""


def write_report(path: Path, opened: Sequence[RunDirectory] = ()) -> Path:
    """Write the report of the run or sweep in directory `path`; for a sweep also the reports of its points.

    The page says what is missing or damaged.

    Args:
        path: the directory.
        opened: runs that are open already; the report does not read their manifests again.

    Returns:
        path of the report.

    Raises:
        StorageError: `path` is neither a run nor a sweep, or cannot be written.
    """
    runs = {run.path: run for run in opened}
    sweep = SweepDirectory(path)
    if sweep.reader.is_sweep():
        _write_sweep(sweep, runs)
    else:
        run = runs.get(path) or RunDirectory(path)
        if not run.reader.is_run():
            raise StorageError(f"{path} is the directory neither of a run nor of a sweep")
        data = read_run(run)
        _write_run(data, run_page(data, Samples(data.config)))
    return path / page.FILE_NAME


def _write_run(data: RunData, html: str) -> None:
    data.directory.writer.write_derived(page.FILE_NAME, page.encode(html))


def _write_sweep(directory: SweepDirectory, runs_by_path: Runs) -> None:
    """Write the pages of the sweep and of its points. Points with the same dataset share its samples."""
    sweep = read_sweep(directory, runs_by_path)
    runs = [point.run for point in sweep.points if point.run is not None]
    opened: dict[str, Samples] = {}
    limit = max(_FEWEST, MOST_RESULTS * _PAGES // max(1, len(runs)))
    for run in runs:
        name = _dataset(run)
        if name not in opened:
            opened[name] = Samples(run.config)
        _write_run(run, run_page(run, opened[name], min(limit, MOST_RESULTS)))
    # If datasets differ, most sample keys differ, too. The page shows inputs of the first dataset and says so.
    html = sweep_page(sweep, next(iter(opened.values()), Samples({})), len(opened) > 1)
    directory.write_derived(page.FILE_NAME, page.encode(html))


def _dataset(run: RunData) -> str:
    """Identity of the dataset's samples: their number and placement do not change a sample."""
    values = run.setting("dataset")
    if not isinstance(values, dict):
        return ""
    return repr({name: value for name, value in values.items() if name not in ("length", "limit", "placement")})
