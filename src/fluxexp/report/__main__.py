"""`python -m fluxexp.report [RUN_DIR]`: the summary's figures, and a contact sheet beside them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from fluxexp.errors import FluxexpError, StorageError
from fluxexp.report.contact_sheet import contact_sheet


def main() -> None:
    """Write `contact_sheet.png` into a run's directory, and print what its summary says."""
    parser = argparse.ArgumentParser(prog="python -m fluxexp.report", description=__doc__)
    parser.add_argument(
        "run", type=Path, nargs="?", help="a run's directory; the newest under outputs/ or multirun/ by default"
    )
    parser.add_argument("--rows", type=int, default=8, help="results on the sheet")
    parser.add_argument("--cell", type=int, default=160, help="pixels of a picture's longer side")
    parser.add_argument("--across", type=int, default=2, help="results beside each other")
    args = parser.parse_args()
    try:
        run = args.run or _newest(Path("outputs"), Path("multirun"))
        sheet = contact_sheet(run, args.rows, args.cell, args.across)
    except FluxexpError as error:
        print(f"fluxexp: {error}", file=sys.stderr)
        sys.exit(2)
    path = run / "contact_sheet.png"
    sheet.save(path, optimize=True)
    summary = run / "summary.json"
    if summary.is_file():
        values = json.loads(summary.read_text())
        print({name: values[name] for name in ("status", "num_tasks", "num_ok", "num_failed", "images_per_s")})
    print(path)


def _newest(*roots: Path) -> Path:
    found = (path for root in roots for path in root.glob("*/summary.json"))
    summaries = sorted(found, key=lambda path: path.stat().st_mtime)
    if not summaries:
        raise StorageError(
            f"no finished run under {' or '.join(map(str, roots))}: name a run's directory, or `make fill` first"
        )
    return summaries[-1].parent


if __name__ == "__main__":
    main()
