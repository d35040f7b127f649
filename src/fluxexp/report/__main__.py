"""`python -m fluxexp.report [DIR]`: the report of a run or a sweep; of a run a contact sheet, too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fluxexp.errors import FluxexpError, StorageError
from fluxexp.report.contact_sheet import FILE_NAME as CONTACT_SHEET
from fluxexp.report.contact_sheet import write_contact_sheet
from fluxexp.report.write import write_report
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory


def main() -> None:
    """Write `report.html`, and for a run `contact_sheet.png`, into a directory; print what its summary says."""
    args = _parser().parse_args()
    try:
        directory = args.run or _newest(Path("outputs"), Path("multirun"))
        report = write_report(directory)
    except FluxexpError as error:
        print(f"fluxexp: {error}", file=sys.stderr)
        sys.exit(2)
    is_sweep = SweepDirectory(directory).reader.is_sweep()
    if not is_sweep:
        _write_sheet(RunDirectory(directory), args)
    _print_figures(directory, is_sweep)
    print(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxexp.report", description=__doc__)
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        metavar="DIR",
        help="directory of a run or of a sweep; the newest under outputs/ or multirun/ by default",
    )
    parser.add_argument("--rows", type=int, default=8, help="results on the contact sheet")
    parser.add_argument("--cell", type=int, default=160, help="pixels of a picture's longer side on it")
    parser.add_argument("--across", type=int, default=2, help="results beside each other on it")
    return parser


def _write_sheet(run: RunDirectory, args: argparse.Namespace) -> None:
    """What a run lacks for a contact sheet takes nothing from its report."""
    try:
        write_contact_sheet(run, args.rows, args.cell, args.across)
    except (FluxexpError, OSError) as error:
        print(f"fluxexp: no contact sheet: {error}", file=sys.stderr)
    else:
        print(run.path / CONTACT_SHEET)


def _print_figures(directory: Path, is_sweep: bool) -> None:
    if is_sweep:
        values = SweepDirectory(directory).reader.lenient().values()
    else:
        values = RunDirectory(directory).reader.lenient().summary()
    if values is None:
        return  # the report says what is wrong with the file
    names = ("status", "num_points", "num_tasks", "num_ok", "num_failed", "images_per_s")
    print({name: values[name] for name in names if name in values})


def _newest(*roots: Path) -> Path:
    found = (path for root in roots for name in ("summary.json", "sweep.json") for path in root.glob(f"*/{name}"))
    ended = sorted(found, key=lambda path: path.stat().st_mtime)
    if not ended:
        raise StorageError(
            f"no finished run under {' or '.join(map(str, roots))}: name a run's directory, or `make fill` first"
        )
    return ended[-1].parent


if __name__ == "__main__":
    main()
