"""Measures how long rank 0 plans and ends the resume of a very large run, and how much memory that takes.

    python benchmarks/resume.py                     a million tasks
    python benchmarks/resume.py --tasks 100000 --json FILE

It makes a run directory of the fake model: a record and a small image file for each task. A new process then plans the
resume with all tasks done (`all done`), and another one with `--pending` tasks without a record. `plan` is everything
that rank 0 does before work starts. Its parts are also measured one after the other: `manifest` (read and index the
lines), `images` (list the files and their sizes) and `tasks` (match tasks with lines). In `plan`, another process lists
the files meanwhile. `plan, CPU` is the processor time of both processes, which other programs disturb less.
`end` is the summary after the work, and `report` is the HTML report, without pictures: the image files are empty.
`peak` is the largest resident memory of the process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fluxexp.address import Address
from fluxexp.cli.compose import check_command
from fluxexp.cli.location import MAIN_CONFIG, config_directory
from fluxexp.config import RunConfig
from fluxexp.config.optimization_kinds import settled
from fluxexp.data import open_dataset
from fluxexp.experiment.provenance import versions
from fluxexp.plan import Plan
from fluxexp.records import Record
from imagespeed.command import command
from imagespeed.report import now

_SMALL = ("dataset.height=64", "dataset.width=64")
_IMAGE = bytes(64)
"""Content of an image file. Only its size matters."""


def main() -> None:
    """Run the benchmark, print a table, and write the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--pending", type=int, default=1_000, help="tasks without a record in the second case")
    parser.add_argument("--directory", type=Path, help="where to make the run; it is kept and used again")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.directory or Path(temporary)
        config = config_of(args.tasks)
        figures = {}
        for name, num_pending in ((f"{args.pending} pending", args.pending), ("all done", 0)):
            make_run(config, root, args.tasks - num_pending)
            figures[name] = in_new_process(config, root)
    stages = list(dict.fromkeys(stage for found in figures.values() for stage in found["seconds"]))
    print(f"{args.tasks} tasks".ljust(16) + "".join(f"{stage:>12}" for stage in stages) + f"{'peak':>12}")
    for name, found in figures.items():
        cells = "".join(f"{found['seconds'][stage]:>10.2f} s" for stage in stages)
        print(f"{name:<16}{cells}{found['peak_mib']:>8.0f} MiB")
    if args.json:
        about = {"tasks": args.tasks, "date": now(), "command": command(), "versions": versions()}
        args.json.write_text(json.dumps({**about, "cases": figures}, indent=1) + "\n", encoding="utf-8")


def config_of(num_tasks: int) -> RunConfig:
    """The config of a run with the fake model and `num_tasks` tasks."""
    overrides = [
        "model=fake",
        "dataset=shapes",
        f"dataset.length={num_tasks}",
        *_SMALL,
        "tracking=disabled",
        "metrics=none",
    ]
    return settled(check_command(config_directory(), MAIN_CONFIG, overrides, None).config, has_gpu=False)


def plan_of(config: RunConfig, root: Path) -> Plan:
    """The plan of the run in `root`."""
    return Plan.of(config, open_dataset(config.dataset), Address.of(root))


def make_run(config: RunConfig, root: Path, num_done: int) -> None:
    """Add records and images to the run in `root`, until the first `num_done` tasks have them."""
    plan = plan_of(config, root)
    with plan.directory.claimed():
        plan.directory.writer.prepare(plan.fingerprint_payload, overwrite=False)
    directory = plan.directory.local_directory()
    for name in ("images", "manifest"):
        (directory / name).mkdir(exist_ok=True)
    first = int(plan.results().is_made.sum())
    with (directory / f"manifest/{first}.jsonl").open("wb") as lines:
        for number in range(first, num_done):
            record = _record(plan, number)
            (directory / str(record.file)).write_bytes(_IMAGE)
            lines.write(record.to_json().encode() + b"\n")


def _record(plan: Plan, number: int) -> Record:
    task = plan.task(number)
    return Record(
        key=task.key,
        sample_key=task.sample_key,
        status="ok",
        file=f"images/{task.key}.png",
        error=None,
        prompt="a large red star at the top left of a blue background, next to a small green circle",
        seed=task.seed,
        variant=task.image_index,
        steps=task.point.steps,
        guidance=task.point.guidance,
        height=64,
        width=64,
        covered=1.0,
        rank=0,
        device="CPU",
        batch_size=8,
        seconds={"condition": 0.000123, "denoise": 0.012345, "decode": 0.001234, "write": 0.002345},
        attempt=1,
        computed_steps=task.point.steps,
        bytes=len(_IMAGE),
    )


def in_new_process(config: RunConfig, root: Path) -> dict[str, Any]:
    """The figures of one resume, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (config, root))


def measure(config: RunConfig, root: Path) -> dict[str, Any]:
    """Plan a resume and summarize it. Seconds by stage, and the peak of resident memory in MiB."""
    import torch

    from fluxexp.experiment.session_messages import RankResult
    from fluxexp.experiment.session_plan import agree_on_plan
    from fluxexp.experiment.summary import summarize
    from fluxexp.parallel.coordinator import LocalCoordinator
    from fluxexp.parallel.topology import Topology
    from fluxexp.report import write_report

    base_mib = _peak_mib()
    seconds: dict[str, float] = {}
    plan = plan_of(config, root)
    reader = plan.directory.reader
    stages = (("manifest", reader.manifest), ("images", reader.made), ("tasks", plan.results))
    for stage, work in stages:
        with _timed(seconds, stage):
            work()
    del reader, stages, work
    plan = plan_of(config, root)
    topology = Topology(0, 1, torch.device("cpu"), LocalCoordinator())
    with ExitStack() as claim:
        start_cpu = _cpu_s()
        with _timed(seconds, "plan"):
            session_plan = agree_on_plan(topology, [plan], lambda _: plan, claim)
        seconds["plan, CPU"] = _cpu_s() - start_cpu
        plan.directory.reader.refresh_records()
        with _timed(seconds, "end"):
            summary = summarize(session_plan, 0, {0: RankResult.without_work(topology)})
        plan.directory.writer.write_config(config, [])
        with _timed(seconds, "report"):
            write_report(plan.directory.address, [plan.directory])
    assert summary["num_ok"] == session_plan.num_resumed
    return {"seconds": seconds, "peak_mib": _peak_mib(), "peak_before_mib": base_mib, "num_ok": summary["num_ok"]}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _cpu_s() -> float:
    """Processor time of this process and of those it has waited for."""
    times = os.times()
    return sum(times[:4])


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
