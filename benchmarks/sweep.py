"""Compares three ways to run nine points on the embedded model: one sweep, Hydra's basic launcher, nine separate runs.

python benchmarks/sweep.py [--samples 8] [--processes 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from fluxexp.experiment.provenance import git_revision, versions

_STEPS = (1, 2, 4)
_GUIDANCE = (1, 8, 30)


def main() -> None:
    """Run the three ways one after the other, print a table, and write the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8, help="samples per point")
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    steps, guidance = (",".join(map(str, values)) for values in (_STEPS, _GUIDANCE))
    axes = ["-m", f"sampling.steps={steps}", f"sampling.guidance={guidance}"]
    ways = {
        "one sweep": [axes],
        "Hydra's basic launcher": [[*axes, "hydra/launcher=basic"]],
        "nine runs": [[f"sampling.steps={s}", f"sampling.guidance={g}"] for s, g in product(_STEPS, _GUIDANCE)],
    }
    seconds = {name: _time(commands, args.samples, args.processes) for name, commands in ways.items()}
    print(f"{len(_STEPS) * len(_GUIDANCE)} points of {args.samples} samples, {args.processes} process(es), offline W&B")
    for name, value in seconds.items():
        print(f"{name:23} {value:7.1f} s   {value / seconds['nine runs']:.2f} of the time of nine runs")
    if args.json:
        report: dict[str, Any] = {"samples": args.samples, "processes": args.processes, "wall_s": seconds}
        report |= {"machine": platform.machine(), "git_revision": git_revision(), "versions": versions()}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _time(commands: list[list[str]], samples: int, processes: int) -> float:
    """Seconds from the start of the first command to the end of the last one."""
    launcher = [sys.executable]
    if processes > 1:
        launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        for command in commands:
            overrides = [*command, "+experiment=fill", f"dataset.length={samples}"]
            subprocess.run([*launcher, "-m", "fluxexp", *overrides], cwd=directory, check=True, capture_output=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
