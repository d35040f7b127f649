"""Measures seconds per image, from a sample in memory to an image file: the documented recipe, other tools, fluxexp.

On a GPU it uses a full-size model with random weights, on a CPU a small one: FLUX.1-Fill, or the one that `--family`
names. All engines get the same samples. They take turns, each in its own process. The benchmark prints a table, and
updates the JSON file after each figure.

    python benchmarks/images.py                                               the figures in the README
    python benchmarks/images.py --quick                                       few steps, one size
    python benchmarks/images.py --family flux_kontext --cases 1024:1 --cfg    another family, with a negative prompt
    python benchmarks/images.py --free 22.5 --cases 1024:1 --engines fluxexp:lossless    memory of a GPU with 24 GB
    python benchmarks/images.py --sizes 1024 --batches 1 --steps 28 --engines recipe fluxexp:lossless --json FILE

Engines:
    recipe              one pipeline of diffusers per process, with `split_between_processes`
    recipe+compile      the recipe with `compile_repeated_blocks(fullgraph=True)` and, on a GPU, cuDNN attention
    recipe+cache-dit    the recipe with cache-dit, if it is installed
    xfuser              not measured: this benchmark has no engine for it
    fluxexp:PRESET      fluxexp with a preset of `optimization`, and optional changes of its keys:
                        fluxexp:lossless,cuda_graph=false

A stretch is one measured sequence of batches. A round measures every engine once.
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

from fluxexp.experiment.provenance import git_revision, versions
from imagespeed.cases import Case, make_case
from imagespeed.command import command
from imagespeed.engine import missing
from imagespeed.launch import run_child
from imagespeed.models import MODELS
from imagespeed.programs import fluxexp_images_per_s, recipe_images_per_s
from imagespeed.report import HEADER, Report, line, now

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
    """Run the benchmark, print a table, and write the figures to the file given by `--json`."""
    args = _arguments()
    with _cache(args.cache) as cache:
        report = Report(args.json, _about(args))
        print(report.about["device"], flush=True)
        for round_number in range(args.rounds):
            for engine in _present(args.engines, report, round_number):
                _measure(args, engine, round_number, cache, report)
    if args.processes and not args.is_gpu and args.family == "flux_fill":
        _measure_programs(args, report)
    print(f"\n{report.table()}")
    print(
        f"large matrix product: {report.matmul_tflops or 0:.2f} TFLOP/s; "
        f"{args.rounds} rounds of {args.repeats} stretches per case"
    )
    for program in report.programs:
        print(f"{program['program']:<9} in {program['processes']} processes: {program['images_per_s']:.2f} images/s")
    report.write()


def _measure(args: argparse.Namespace, engine: str, round_number: int, cache: Path, report: Report) -> None:
    request = {
        "engine": engine,
        "model": args.family,
        "has_second_pass": args.cfg,
        "cases": [case.to_json() for case in _cases(args)],
        "repeats": args.repeats,
        "watch": round_number == 0 and engine.startswith(args.watch),
        "is_full_size": args.is_gpu,
        "free_gib": args.free,
    }
    start: dict[str, Any] = {"engine": engine, "round": round_number}
    report.starts.append(start)
    for message in run_child(request, args.limit, cache / re.sub(r"[^\w+-]+", "-", engine)):
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
    """Measure whole programs. They take turns, so that other load on the machine slows both."""
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
    """The engines that this machine can measure. In round 0, prints why it skips the others."""
    for engine in engines:
        reason = missing(engine)
        if reason is None:
            yield engine
        elif round_number == 0:
            print(f"{engine}: skipped, {reason}", flush=True)
            report.starts.append({"engine": engine, "left_out": reason})


def _cases(args: argparse.Namespace) -> list[Case]:
    if args.cases:
        pairs = [tuple(case.split(":")) for case in args.cases]
    else:
        pairs = [(size, batch) for size in args.sizes for batch in args.batches]
    largest = max((int(size) for size, _ in pairs if size != "mixed"), default=1024 if args.is_gpu else 128)
    return [
        make_case(
            size, None if batch == "auto" else int(batch), args.steps, args.images, largest, args.family, args.cfg
        )
        for size, batch in pairs
    ]


def _about(args: argparse.Namespace) -> dict[str, Any]:
    settings = {name: value for name, value in vars(args).items() if name not in ("json", "cache", "is_gpu")}
    return {
        "device": args.device_name,
        "family": args.family,
        "model": f"{args.family}, random weights" if args.is_gpu else MODELS[args.family].small,
        "true_cfg": args.cfg,
        "date": now(),
        "command": command(),
        "settings": {name: value for name, value in settings.items() if name != "device_name"},
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(MODELS), default="flux_fill", help="the model (default: flux_fill)")
    parser.add_argument("--cfg", action="store_true", help="make images with a negative prompt: two passes per step")
    parser.add_argument("--sizes", nargs="+", help="sides of the images in pixels, or `mixed`")
    parser.add_argument("--batches", nargs="+", help="batch sizes, or `auto`")
    parser.add_argument("--cases", nargs="+", help="SIZE:BATCH pairs, instead of all sizes with all batches")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--images", type=int, help="minimum number of images per stretch")
    parser.add_argument("--engines", nargs="+", help="engines to measure (see above)")
    parser.add_argument("--repeats", type=int, default=3, help="stretches per case in each round")
    parser.add_argument(
        "--rounds", type=int, default=2, help="number of rounds; from the second round on, compiled code is cached"
    )
    parser.add_argument("--limit", type=float, default=600.0, help="time limit of each process, in seconds")
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        help="processes of whole programs, on a CPU and for flux_fill only; 0 skips whole programs",
    )
    parser.add_argument("--tasks", type=int, default=64, help="number of images of whole programs")
    parser.add_argument(
        "--watch",
        default="",
        help="measure the waiting time of engines whose names start with this (default: all engines; none: no engine)",
    )
    parser.add_argument("--free", type=float, help="GiB of GPU memory to leave free, to simulate a smaller GPU")
    parser.add_argument(
        "--cache", type=Path, help="directory for compiled code (default: a temporary directory, empty at the start)"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="few steps and images, batch size 1, one round")
    args = parser.parse_args()
    args.device_name, args.is_gpu = _device()
    if args.free is not None and not args.is_gpu:
        parser.error("--free needs a GPU, and this machine has none")
    if args.cfg and not MODELS[args.family].takes_second_pass:
        able = ", ".join(name for name, model in MODELS.items() if model.takes_second_pass)
        parser.error(f"--cfg: {args.family} takes no negative prompt: use --family {able}")
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    defaults = {**(_GPU if args.is_gpu else _CPU), **({} if not args.quick else _quick(args.is_gpu))}
    if given.get("processes") and args.family != "flux_fill":
        parser.error("--processes: whole programs are measured for --family flux_fill only")
    for name, value in defaults.items():
        if name not in given:
            setattr(args, name, value)
    return args


def _quick(is_gpu: bool) -> dict[str, Any]:
    steps = _QUICK_STEPS["gpu" if is_gpu else "cpu"]
    return {**_QUICK, "steps": steps, "processes": 0, "sizes": ["1024" if is_gpu else "128"]}


def _device() -> tuple[str, bool]:
    """Name of the device, and whether it is a GPU. Does not use CUDA, because a CUDA context would use GPU memory."""
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
