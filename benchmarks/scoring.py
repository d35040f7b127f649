"""Measures how long `python -m fluxexp.score` takes for the sweep of `+experiment=steps`: 15 points, basic metrics.

    python benchmarks/scoring.py                                 360 images
    python benchmarks/scoring.py --samples 4 --json FILE
    python benchmarks/scoring.py --source ../other/src           compares with another checkout

It makes the sweep once, without scores. Then it scores it in a new process, `--repeat` times with each source, in
turns, and deletes the scores before each time. `pass` is the scoring pass by the summary, without the start of the
process. `wall` and `CPU` are of the whole process; other programs disturb `CPU` (of all threads) less than `wall`. All
sources must store the same scores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fluxexp.experiment.provenance import git_revision, versions
from imagespeed.command import command
from imagespeed.report import now

_COLUMNS = {"pass": "pass_s", "wall": "wall_s", "CPU": "cpu_s"}
_HERE = Path(__file__).resolve().parent.parent / "src"


def main() -> None:
    """Run the benchmark, print a table, and write the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=24, help="samples per point; there are 15 points")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--source", type=Path, action="append", default=[], help="`src` of another checkout")
    parser.add_argument("--directory", type=Path, help="where to make the sweep; it is kept and used again")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    sources = [*(source.resolve() for source in args.source), _HERE]
    with tempfile.TemporaryDirectory() as temporary:
        root = args.directory or Path(temporary)
        sweep = make_sweep(root, args.samples)
        runs: dict[Path, list[dict[str, float]]] = {source: [] for source in sources}
        scores = []
        for _ in range(args.repeat):
            for source in sources:
                runs[source].append(score(sweep, source))
                scores.append(stored_scores(root))
    assert all(found == scores[0] for found in scores), "the sources store different scores"
    num_images = 15 * args.samples
    print(f"{num_images} images, median of {args.repeat}")
    cases = []
    for source, measured in runs.items():
        case: dict[str, Any] = {"source": "this" if source == _HERE else "other"}
        case |= {"git_revision": git_revision() if source == _HERE else revision_of(source)}
        case |= {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        case["runs"] = measured
        cases.append(case)
        figures = "   ".join(f"{name} {case[key]:7.2f} s" for name, key in _COLUMNS.items())
        print(f"{case['source']:6} {figures}")
    if args.json:
        about = {"num_images": num_images, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
        about |= {"date": now(), "command": command(), "versions": versions()}
        args.json.write_text(json.dumps({**about, "cases": cases}, indent=1) + "\n", encoding="utf-8")


def make_sweep(root: Path, samples: int) -> Path:
    """Make the images of the sweep, if they are not there. Returns its directory."""
    overrides = [f"dataset.limit={samples}", f"output.dir={root}", "metrics=none", "report=off", "tracking=disabled"]
    run("fluxexp", "-m", "+experiment=steps", *overrides, source=_HERE)
    return next(root.glob("*-sweep-*"))


def score(sweep: Path, source: Path) -> dict[str, float]:
    """Seconds of one scoring of all images of the sweep, by the code in `source`."""
    for scores in sweep.parent.glob("*/scores"):
        shutil.rmtree(scores)
    start_s, before_s = time.perf_counter(), children_s()
    run("fluxexp.score", str(sweep), "metrics=basic", source=source)
    wall_s, cpu_s = time.perf_counter() - start_s, children_s() - before_s
    summary = json.loads(next(sweep.parent.glob("*/summary.json")).read_text(encoding="utf-8"))
    return {"pass_s": summary["scoring"]["wall_s"], "wall_s": round(wall_s, 3), "cpu_s": round(cpu_s, 3)}


def stored_scores(root: Path) -> list[str]:
    """All score lines, in an order that does not depend on threads."""
    files = root.glob("*/scores/*.jsonl")
    return sorted(line for file in files for line in file.read_text(encoding="utf-8").splitlines())


def run(module: str, *arguments: str, source: Path) -> None:
    """Run a module of the code in `source`."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, env=environment)


def children_s() -> float:
    """Processor seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def revision_of(source: Path) -> str | None:
    """The git revision of another checkout; None outside of one."""
    done = subprocess.run(["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
