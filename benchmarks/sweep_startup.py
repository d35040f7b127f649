"""Measures how long a sweep of many points needs until its points are composed and checked, on rank 0 and another rank.

    python benchmarks/sweep_startup.py                2,000 points
    python benchmarks/sweep_startup.py --points 100

Each rank is a new process, as a launcher of two processes starts it. It ends where it would plan the runs and join the
other rank.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

_PROGRAM = """
import importlib, sys, time
start_s, start_cpu_s = time.time(), time.process_time()
main = importlib.import_module("fluxexp.cli.main")
def run_sweep(points, *_):
    print("@@", len(points), time.time() - start_s, time.process_time() - start_cpu_s, flush=True)
    raise SystemExit(0)
main.run_sweep = run_sweep
main.main()
"""


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2_000)
    args = parser.parse_args()
    print(f"{'rank':<6}{'points':>8}{'wall':>12}{'CPU':>12}")
    for rank in (0, 1):
        points, wall_s, cpu_s = figures(rank, args.points)
        print(f"{rank:<6}{points:>8}{wall_s:>10.2f} s{cpu_s:>10.2f} s")


def figures(rank: int, num_points: int) -> tuple[int, float, float]:
    """Number of points that a rank composes, and the seconds and CPU seconds that it needs, without the interpreter."""
    overrides = ["-m", "model=fake", "dataset.limit=2", "tracking=disabled", f"sampling.seed=range({num_points})"]
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 29501}
    environment = {**os.environ, "MASTER_ADDR": "localhost", **{name: str(value) for name, value in variables.items()}}
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-c", _PROGRAM, *overrides]
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    _, points, wall_s, cpu_s = line.split()
    return int(points), float(wall_s), float(cpu_s)


if __name__ == "__main__":
    main()
