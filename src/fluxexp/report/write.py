"""Writes `report.html` into the directory of a run or of a sweep, from nothing but what lies there."""

from __future__ import annotations

from pathlib import Path

from fluxexp.errors import StorageError
from fluxexp.report import page
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.run_data import RunData, is_run, read_run
from fluxexp.report.run_report import run_page
from fluxexp.report.selection import MOST_RESULTS
from fluxexp.report.sweep_data import is_sweep, read_sweep
from fluxexp.report.sweep_report import sweep_page

_PAGES = 2
"""Full pages of results that a sweep's points have together: the time that takes should not grow with the points."""
_FEWEST = 40
"""Results on the page of a point, whatever their number."""


def write_report(directory: Path) -> Path:
    """Write the report of the run or sweep in `directory`; of a sweep those of its points, too. Where it is.

    What is missing or damaged there is said on the page.

    Raises:
        StorageError: `directory` is neither a run's nor a sweep's, or cannot be written to.
    """
    if is_sweep(directory):
        return _write_sweep(directory)
    if not is_run(directory):
        raise StorageError(f"{directory} is the directory neither of a run nor of a sweep")
    data = read_run(directory)
    return page.write(directory, run_page(data, Samples(data.config)))


def _write_sweep(directory: Path) -> Path:
    """The sweep's page and its points'. Points that share a dataset share its samples, opened once."""
    sweep = read_sweep(directory)
    runs = [point.run for point in sweep.points if point.run is not None]
    opened: dict[str, Samples] = {}
    limit = max(_FEWEST, MOST_RESULTS * _PAGES // max(1, len(runs)))
    for run in runs:
        name = _dataset(run)
        if name not in opened:
            opened[name] = Samples(run.config)
        page.write(run.path, run_page(run, opened[name], min(limit, MOST_RESULTS)))
    # Where datasets differ, so do most samples' names; the page takes inputs from the first, and says so.
    return page.write(directory, sweep_page(sweep, next(iter(opened.values()), Samples({})), len(opened) > 1))


def _dataset(run: RunData) -> str:
    """What a dataset's samples are made of: how many are taken and how they are placed changes none of them."""
    values = run.setting("dataset")
    if not isinstance(values, dict):
        return ""
    return repr({name: value for name, value in values.items() if name not in ("length", "limit", "placement")})
