"""Seconds an image, from a sample in memory to an image file: the documented recipe, faster peers, and fluxexp.

On a GPU the full-size FLUX.1-Fill with random weights, on a CPU the embedded miniature. Engines take turns, each in
a process of its own, on the same samples, in one launch; a table is printed and a JSON written as figures come.

    python benchmarks/fill.py                                             what the README shows
    python benchmarks/fill.py --quick                                     few steps, one size
    python benchmarks/fill.py --free 22.5 --cases 1024:1 --engines fluxexp:lossless    as on a GPU of 24 GB
    python benchmarks/fill.py --sizes 1024 --batches 1 --steps 28 --engines recipe fluxexp:lossless --json FILE

Engines: recipe (one `FluxFillPipeline` a process, `split_between_processes`), recipe+compile (the same with
`compile_repeated_blocks(fullgraph=True)` and cuDNN attention), recipe+cache-dit and xfuser where installed, and
fluxexp:PRESET with a preset of `optimization`; fluxexp:lossless,cuda_graph=false changes one of its keys.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fillspeed.cases import Case, make_case
from fillspeed.command import command
from fillspeed.engine import missing
from fillspeed.launch import run_child
from fillspeed.programs import fluxexp_images_per_s, recipe_images_per_s
from fillspeed.report import HEADER, Report, line, now
from fluxexp.experiment.provenance import git_revision, versions

_GPU = {
    "sizes": ["1024", "512", "mixed"],
    "batches": ["1", "auto"],
    "steps": 28,
    "images": 4,
    "engines": ["recipe", "recipe+compile", "recipe+cache-dit", "xfuser", "fluxexp:none", "fluxexp:lossless"],
}
_CPU = {"sizes": ["128", "mixed"], "batches": ["1", "auto"], "steps": 8, "images": 8}
_CPU["engines"] = ["recipe", "fluxexp:none", "fluxexp:auto"]
_QUICK: dict[str, Any] = {"batches": ["1"], "images": 2, "repeats": 2, "rounds": 1}
_QUICK_STEPS = {"gpu": 8, "cpu": 2}
_PROGRAM_BATCH = 8


def main() -> None:
    """Measure what is asked for, print a table, and keep the figures as JSON if asked to."""
    args = _arguments()
    with _cache(args.cache) as cache:
        report = Report(args.json, _about(args))
        print(report.about["device"], flush=True)
        for round_number in range(args.rounds):
            for engine in _present(args.engines, report, round_number):
                _measure(args, engine, round_number, cache, report)
    if args.processes and not args.is_gpu:
        _measure_programs(args, report)
    print(f"\n{report.table()}")
    print(f"matmul {report.matmul_tflops or 0:.2f} TFLOP/s; {args.rounds} rounds of {args.repeats} stretches")
    for program in report.programs:
        print(f"{program['program']:<9} in {program['processes']} processes: {program['images_per_s']:.2f} images/s")
    report.write()


def _measure(args: argparse.Namespace, engine: str, round_number: int, cache: Path, report: Report) -> None:
    order = {
        "engine": engine,
        "cases": [case.to_json() for case in _cases(args)],
        "repeats": args.repeats,
        "watch": round_number == 0 and engine.startswith(args.watch),
        "is_full_size": args.is_gpu,
        "free_gib": args.free,
    }
    start: dict[str, Any] = {"engine": engine, "round": round_number}
    report.starts.append(start)
    for message in run_child(order, args.limit, cache / re.sub(r"[^\w+-]+", "-", engine)):
        kind = message.pop("kind")
        if kind == "row":
            report.rows.append({**message["row"], "round": round_number})
            latest = Report(None, {}, report.starts, report.rows[-1:])
            print(line(latest.points()[0]), flush=True)
        else:
            start |= message
        if kind == "loaded":
            print(f"{engine}: imports {start['import_s']:.1f} s, load {start['load_s']:.1f} s {start['notes']}")
            print(HEADER, flush=True)
        if kind == "error":
            print(f"{engine}: {message['error']}", flush=True)
        report.write()


def _measure_programs(args: argparse.Namespace, report: Report) -> None:
    """Whole programs, in turn, so that a machine that slows down slows both."""
    side = max(case.sizes[0][0] for case in _cases(args))
    sizes = (args.tasks, args.steps, _PROGRAM_BATCH, side, args.processes)
    rates: dict[str, list[float]] = {"recipe": [], "fluxexp": []}
    for _ in range(args.rounds):
        rates["recipe"].append(recipe_images_per_s(*sizes))
        rates["fluxexp"].append(fluxexp_images_per_s(*sizes))
    for name, values in rates.items():
        report.programs.append(
            {
                "program": name,
                "processes": args.processes,
                "tasks": args.tasks,
                "steps": args.steps,
                "images_per_s": statistics.median(values),
                "each": values,
            }
        )


def _present(engines: Sequence[str], report: Report, round_number: int) -> Iterator[str]:
    """Those that can be measured here; of the others it is said once why not."""
    for engine in engines:
        reason = missing(engine)
        if reason is None:
            yield engine
        elif round_number == 0:
            print(f"{engine}: left out, {reason}", flush=True)
            report.starts.append({"engine": engine, "left_out": reason})


def _cases(args: argparse.Namespace) -> list[Case]:
    if args.cases:
        pairs = [tuple(case.split(":")) for case in args.cases]
    else:
        pairs = [(size, batch) for size in args.sizes for batch in args.batches]
    largest = max((int(size) for size, _ in pairs if size != "mixed"), default=1024 if args.is_gpu else 128)
    return [
        make_case(size, None if batch == "auto" else int(batch), args.steps, args.images, largest)
        for size, batch in pairs
    ]


def _about(args: argparse.Namespace) -> dict[str, Any]:
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "cache", "is_gpu")}
    return {
        "device": args.device_name,
        "model": "flux_fill, random weights" if args.is_gpu else "tiny_fill",
        "date": now(),
        "command": command(),
        "settings": {name: value for name, value in settings.items() if name != "device_name"},
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help="sides in pixels, or mixed")
    parser.add_argument("--batches", nargs="+", help="images at once, or auto")
    parser.add_argument("--cases", nargs="+", help="SIZE:BATCH pairs, instead of all sizes with all batches")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--images", type=int, help="of a stretch, at the least")
    parser.add_argument("--engines", nargs="+")
    parser.add_argument("--repeats", type=int, default=3, help="stretches of each point in a round")
    parser.add_argument("--rounds", type=int, default=2, help="from the second on compiled code is found in its cache")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a process may take")
    parser.add_argument("--processes", type=int, default=2, help="of whole programs, on a CPU; 0 leaves them out")
    parser.add_argument("--tasks", type=int, default=64, help="of whole programs")
    parser.add_argument(
        "--watch", default="", help="measure waiting of engines whose names begin so: by default all; none: of none"
    )
    parser.add_argument("--free", type=float, help="GiB of the GPU's memory to leave free: as if it were a smaller one")
    parser.add_argument("--cache", type=Path, help="keeps compiled code; by default an empty one, removed afterwards")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="few steps and images, batch 1, one round")
    args = parser.parse_args()
    args.device_name, args.is_gpu = _device()
    if args.free is not None and not args.is_gpu:
        parser.error("--free is of a GPU's memory, and there is none")
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    defaults = {**(_GPU if args.is_gpu else _CPU), **({} if not args.quick else _quick(args.is_gpu))}
    for name, value in defaults.items():
        if name not in given:
            setattr(args, name, value)
    return args


def _quick(is_gpu: bool) -> dict[str, Any]:
    steps = _QUICK_STEPS["gpu" if is_gpu else "cpu"]
    return {**_QUICK, "steps": steps, "processes": 0, "sizes": ["1024" if is_gpu else "128"]}


def _device() -> tuple[str, bool]:
    """Name of the device, and whether it is a GPU. Asks no CUDA: a context of this process would take its memory."""
    try:
        import pynvml

        pynvml.nvmlInit()
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        if pynvml.nvmlDeviceGetCount() and not hidden:
            return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))), True
    except (ImportError, pynvml.NVMLError):
        pass
    return f"CPU, {platform.machine()}, {os.cpu_count()} cores", False


@contextmanager
def _cache(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="fluxexp-bench-") as directory:
        yield Path(directory)


if __name__ == "__main__":
    main()
