"""`python -m fluxexp.report [DIR]` writes the report of a run or a sweep. For a run, it also writes a contact sheet."""

from __future__ import annotations

import argparse
import sys

from fluxexp.address import Address
from fluxexp.errors import FluxexpError
from fluxexp.report.contact_sheet import write_contact_sheet
from fluxexp.report.write import write_report
from fluxexp.storage.result_files import CONTACT_SHEET
from fluxexp.storage.run_directory import RUNS_ROOT, SWEEPS_ROOT, RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory, newest_result


def main() -> None:
    """Write `report.html` (and `contact_sheet.png` for a run) into the directory, and print the main summary values."""
    args = _parser().parse_args()
    try:
        address = args.run or newest_result()
        report = write_report(address)
    except FluxexpError as error:
        print(f"fluxexp: {error}", file=sys.stderr)
        sys.exit(2)
    is_sweep = SweepDirectory(address).reader.is_sweep()
    if not is_sweep:
        _write_sheet(RunDirectory(address), args)
    _print_summary(address, is_sweep)
    print(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxexp.report", description=__doc__)
    parser.add_argument(
        "run",
        type=Address.of,
        nargs="?",
        metavar="DIR",
        help=f"directory of a run or of a sweep (default: the newest one under {RUNS_ROOT}/ or {SWEEPS_ROOT}/)",
    )
    parser.add_argument("--rows", type=int, default=8, help="maximum number of results on the contact sheet")
    parser.add_argument(
        "--cell", type=int, default=160, help="longer side of each picture on the contact sheet, in pixels"
    )
    parser.add_argument("--across", type=int, default=2, help="results side by side on the contact sheet")
    return parser


def _write_sheet(run: RunDirectory, args: argparse.Namespace) -> None:
    """Write the contact sheet. If that fails, print why: the report does not need the contact sheet."""
    try:
        is_there = write_contact_sheet(run, args.rows, args.cell, args.across)
    except (FluxexpError, OSError) as error:
        print(f"fluxexp: cannot write the contact sheet: {error}", file=sys.stderr)
        return
    if is_there:
        print(run.address / CONTACT_SHEET)
    else:
        why = "the run has no finished image whose sample can still be read"
        print(f"fluxexp: cannot write the contact sheet: {why}", file=sys.stderr)


def _print_summary(address: Address, is_sweep: bool) -> None:
    if is_sweep:
        values = SweepDirectory(address).reader.lenient().values()
    else:
        values = RunDirectory(address).reader.lenient().summary()
    if values is None:
        return  # the report shows what is wrong with the file
    names = ("status", "num_points", "num_tasks", "num_ok", "num_failed", "images_per_s")
    print({name: values[name] for name in names if name in values})


if __name__ == "__main__":
    main()
