"""`python -m fluxexp.compare RUN RUN ...`: compare runs with the first one by their scores."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fluxexp.address import Address
from fluxexp.compare.pairs import compare
from fluxexp.compare.run_view import RunView, quality_metric
from fluxexp.errors import ComparisonError, FluxexpError
from fluxexp.metrics.catalog import info
from fluxexp.plan import Plan
from fluxexp.storage.run_directory import RunDirectory


def main() -> None:
    """Print the paired differences of each run from the first. Exit code 2 if a directory is not a run."""
    parser = argparse.ArgumentParser(prog="python -m fluxexp.compare", description=__doc__)
    parser.add_argument(
        "baseline", type=Address.of, metavar="RUN", help="directory of the run that the others are compared with"
    )
    parser.add_argument("run", type=Address.of, nargs="+", metavar="RUN", help="another run's directory")
    parser.add_argument("--metric", help="metric for the samples that changed most; default: the quality metric")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args()
    try:
        baseline, *runs = (RunView.read(Plan.read(RunDirectory(address))) for address in (args.baseline, *args.run))
        scored = baseline.quality()
        if args.metric and args.metric not in scored:
            names = ", ".join(sorted(scored)) or "none"
            raise ComparisonError(f"--metric={args.metric}: {args.baseline} has no such scores. It has: {names}")
        metric = args.metric or quality_metric([baseline.config], scored)
        found = {str(address): compare(run, baseline, metric) for address, run in zip(args.run, runs, strict=True)}
    except FluxexpError as error:
        print(f"fluxexp: {str(error).strip()}", file=sys.stderr)
        sys.exit(2)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for run_address, comparison in found.items():
        print(f"{run_address} against {args.baseline}")
        print("\n".join(_lines(comparison)) if comparison else "  the runs have no images of the same sample and noise")


def _lines(comparison: dict[str, Any]) -> list[str]:
    lines = [f"  {comparison['num_pairs']} pairs{'':14} difference   95 % interval          wins"]
    for name, found in comparison["metrics"].items():
        sure = "too few samples" if found["low"] is None else f"{found['low']:+.4g} to {found['high']:+.4g}"
        wins = "" if found["win_rate"] is None else f"{found['win_rate']:.0%}"
        ties = f" ({found['num_ties']} equal)" if found["num_ties"] else ""
        lines.append(f"  {info(name).title:22} {found['difference']:+10.4g}   {sure:22} {wins:>4}{ties}".rstrip())
    changed = ", ".join(f"{one['sample_key']} ({one['difference']:+.3g})" for one in comparison["changed_most"][:3])
    return [*lines, f"  changed most: {changed}"] if changed else lines


if __name__ == "__main__":
    main()
