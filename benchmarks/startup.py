"""Measures the time from the command to the first batch, compared with a program that only loads the model.

    python benchmarks/startup.py                    on the CPU, with the embedded model
    python benchmarks/startup.py --repeats 9 --json FILE
    python benchmarks/startup.py tracking=disabled  with overrides of fluxexp's config

The two programs take turns, each in a new process with one CPU thread. `libraries` is the time until a program that
does nothing else has imported the libraries and loaded the model with `FluxFillPipeline`. `loaded` is the time until
fluxexp has loaded the model, and `warm` the time until its first batch begins, after the warm-up step. The minimum over
the repeats counts, because other load on the machine can only make a program slower.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxexp.address import Address
from fluxexp.config.model_paths import model_directory
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.telemetry import Event
from imagespeed.command import command
from imagespeed.report import now

_LIBRARIES = """
import sys, time
import torch
from diffusers import FluxFillPipeline
FluxFillPipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
print("@@", time.time())
"""
_LIMIT_S = 300


def main() -> None:
    """Run the benchmark, print a table and the ratios, and write the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides of fluxexp's config")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each program")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {"libraries": [], "loaded": [], "warm": []}
    for _ in range(args.repeats):
        seconds["libraries"].append(libraries_s())
        for name, value in fluxexp_s(args.overrides).items():
            seconds[name].append(value)
    least = {name: min(values) for name, values in seconds.items()}
    ratios = {name: least[name] / least["libraries"] for name in ("loaded", "warm")}
    print(f"{'time until':<44}{'minimum':>8}  each run")
    for name, event in (
        ("libraries", "the libraries have loaded the model"),
        ("loaded", "fluxexp has loaded the model"),
        ("warm", "fluxexp begins its first batch"),
    ):
        print(f"{event:<44}{least[name]:>6.2f} s  {' '.join(f'{value:.2f}' for value in seconds[name])}")
    print(
        f"relative to the libraries: {ratios['loaded']:.2f} to the loaded model, "
        f"{ratios['warm']:.2f} to the first batch"
    )
    if args.json:
        figures = {"seconds": seconds, "least": least, "ratios": ratios}
        args.json.write_text(json.dumps(_about() | figures, indent=1) + "\n", encoding="utf-8")


def libraries_s() -> float:
    """Seconds until a program that does nothing else has loaded the model."""
    start_s, output = _run([sys.executable, "-c", _LIBRARIES, str(model_directory("embedded:tiny_fill"))])
    (line,) = [line for line in output.splitlines() if line.startswith("@@")]
    return float(line.split()[1]) - start_s


def fluxexp_s(changes: Sequence[str] = ()) -> dict[str, float]:
    """Seconds until `python -m fluxexp` has loaded the model (`loaded`), and until its first batch begins (`warm`).

    `changes` are overrides of the default config.
    """
    with tempfile.TemporaryDirectory() as directory:
        overrides = ["+experiment=fill", "dataset.length=1", "sampling.steps=1", f"output.dir={directory}", *changes]
        start_s, _ = _run([sys.executable, "-m", "fluxexp", *overrides])
        (run,) = Path(directory).iterdir()
        (events,) = RunDirectory(Address.of(run)).reader.events(Event.from_json).values()
    return {
        "loaded": next(event.end_s for event in events if event.span == "load") - start_s,
        "warm": next(event.end_s for event in events if event.warmup) - start_s,
    }


def _run(command: Sequence[str]) -> tuple[float, str]:
    """Run `command`, and return its start (seconds since the epoch) and its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    start_s = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return start_s, done.stdout


def _about() -> dict[str, Any]:
    return {
        "device": f"CPU, {platform.machine()}, {os.cpu_count()} cores",
        "date": now(),
        "command": command(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


if __name__ == "__main__":
    main()
