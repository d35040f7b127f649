"""Compares the makespan of work stealing with its lower bound: for four real processes, then for many simulated ranks.

The processes run the fake model on images of very different sizes, sorted by size, as folders often are. One rank is
three times slower. The simulation runs the real scheduling code on a virtual clock. Each call to the store costs the
time that the benchmark measures on a real store.

    python benchmarks/balance.py [--ranks 64] [--tasks 100000] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from fluxexp.config.schema import WorkSchedule
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.sharding import contiguous_shards
from fluxexp.parallel.stealing import WorkSource, prepare_queue
from fluxexp.parallel.tcp_coordinator import TCPStoreCoordinator

_PROCESSES = 4
_SLOWER = 3
_SIZES = (128, 256, 512, 1024)
_SECONDS_PER_STEP = 0.01


def main() -> None:
    """Run both parts, print their tables, and write the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64, help="number of simulated ranks")
    parser.add_argument("--tasks", type=int, default=100_000, help="number of simulated tasks")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    report: dict[str, Any] = {"real": _real(), "simulated": _simulated(args.ranks, args.tasks)}
    report |= {"git_revision": git_revision(), "versions": versions()}
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _real(per_size: int = 24) -> dict[str, Any]:
    """Makespans of four processes, without loading."""
    tokens = {size: size * size // 256 + 512 for size in _SIZES}
    seconds = {size: 4 * _SECONDS_PER_STEP * tokens[size] / tokens[128] for size in _SIZES}
    speeds = [1.0] * (_PROCESSES - 1) + [1 / _SLOWER]
    bound_s = per_size * sum(seconds.values()) / sum(speeds)
    task_s = _SLOWER * max(seconds.values())
    print(f"{_PROCESSES} processes, {per_size * len(_SIZES)} images of {_SIZES} pixels, rank 3 {_SLOWER} times slower")
    print(f"lower bound {bound_s:.2f} s; the most expensive image takes {task_s:.2f} s on the slow rank")
    makespans = {}
    for schedule in ("static", "steal"):
        ranks = _launch(schedule, per_size)
        makespans[schedule] = max(rank["busy_s"] + rank["wait_s"] + rank["steal_s"] + rank["idle_s"] for rank in ranks)
        busy = " ".join(f"{rank['busy_s']:.2f}" for rank in ranks)
        over = makespans[schedule] / bound_s - 1
        print(
            f"{schedule:7} makespan {makespans[schedule]:6.2f} s, {over:+.1%} over the bound; "
            f"busy seconds of the ranks: {busy}"
        )
    return {"bound_s": bound_s, "costliest_task_s": task_s, "makespan_s": makespans}


def _launch(schedule: str, per_size: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        table = Path(directory) / "sizes.csv"
        with table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("prompt", "size"))
            rows.writerows((f"{size} {number}", size) for size in _SIZES for number in range(per_size))
        pace = ",".join([str(_SECONDS_PER_STEP)] * (_PROCESSES - 1) + [str(_SLOWER * _SECONDS_PER_STEP)])
        overrides = [
            *("model=fake", f"model.seconds_per_step=[{pace}]", "sampling.steps=4", "sampling.batch_size=1"),
            *("dataset=prompts", f"dataset.path={table}", "output.paste=false", "output.format=jpeg"),
            *(f"parallelism.schedule={schedule}", "tracking=disabled", f"output.dir={directory}"),
        ]
        launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", str(_PROCESSES)]
        subprocess.run([*launcher, "-m", "fluxexp", *overrides], check=True, capture_output=True)
        (file_,) = Path(directory).glob("*/summary.json")
        ranks: list[dict[str, Any]] = json.loads(file_.read_text())["ranks"]
        return ranks


class _TimedCoordinator(LocalCoordinator):
    """A coordinator with a virtual clock. Each call adds the time that it takes on a real store to `spent_s`."""

    def __init__(self, call_s: float, key_s: float) -> None:
        super().__init__()
        self._call_s, self._key_s = call_s, key_s
        self.spent_s = 0.0

    def add(self, key: str, amount: int) -> int:
        self.spent_s += self._call_s
        return super().add(key, amount)

    def put(self, key: str, value: Any) -> None:
        self.spent_s += self._call_s
        super().put(key, value)

    def get_many(self, keys: Sequence[str]) -> list[Any]:
        self.spent_s += self._call_s + self._key_s * len(keys)
        return super().get_many(keys)


def _simulated(num_ranks: int, num_tasks: int) -> dict[str, Any]:
    """Makespans and the cost of scheduling, for ranks of different speeds.

    Task costs have a log-normal distribution with a mean of one second.
    """
    call_s, key_s = _measure_store()
    rng = random.Random(0)
    costs = sorted(rng.lognormvariate(0, 1) / 1.6487 for _ in range(num_tasks))  # e^0.5 is the mean of lognormal(0, 1)
    paces = [3.0] + [rng.uniform(0.8, 1.25) for _ in range(num_ranks - 1)]  # seconds per second of cost
    bound_s = sum(costs) / sum(1 / pace for pace in paces)
    print(f"\n{num_ranks} simulated ranks, {num_tasks} tasks of 1 s on average, sorted by cost; rank 0 3 times slower")
    print(
        f"a store call takes {call_s * 1e6:.0f} us, and {key_s * 1e6:.1f} us for each further key; "
        f"lower bound {bound_s:.1f} s"
    )
    results: dict[str, Any] = {"call_us": call_s * 1e6, "bound_s": bound_s}
    for schedule in ("static", "steal"):
        start = time.process_time()
        makespan_s, spent_s, num_steals = _simulate(costs, paces, schedule, _TimedCoordinator(call_s, key_s))
        computing_s = time.process_time() - start
        fraction = (spent_s + computing_s) / (makespan_s * num_ranks)
        results[schedule] = {"makespan_s": makespan_s, "scheduling_share": fraction, "num_steals": num_steals}
        print(
            f"{schedule:7} makespan {makespan_s:8.1f} s, {makespan_s / bound_s - 1:+.2%} over the bound; "
            f"{num_steals} steals; scheduling takes {fraction:.3%} of all ranks' time"
        )
    return results


def _simulate(
    costs: Sequence[float], paces: Sequence[float], schedule: Any, coordinator: _TimedCoordinator
) -> tuple[float, float, int]:
    """Makespan, seconds that all ranks spend on the store, and number of steals."""
    shards = [
        sorted(costs[shard.start : shard.stop], reverse=True) for shard in contiguous_shards(len(costs), len(paces))
    ]
    prepare_queue(coordinator, len(paces))
    coordinator.spent_s = 0.0
    sources = [WorkSource(coordinator, rank, shards, _schedule(schedule)) for rank in range(len(paces))]
    # Heap of ranks by the time at which they need work: (time, rank, seconds and cost of the last task).
    ready = [(0.0, rank, 0.0, 0.0) for rank in range(len(paces))]
    makespan_s = 0.0
    while ready:
        now_s, rank, seconds, cost = heapq.heappop(ready)
        before_s = coordinator.spent_s
        if cost:
            sources[rank].report(seconds, cost)
        taken = sources[rank].take(1)
        now_s += coordinator.spent_s - before_s
        if taken is None:
            makespan_s = max(makespan_s, now_s)
            continue
        cost = sources[rank].cost(taken)
        heapq.heappush(ready, (now_s + paces[rank] * cost, rank, paces[rank] * cost, cost))
    return makespan_s, coordinator.spent_s, sum(source.num_steals for source in sources)


def _schedule(name: str) -> WorkSchedule:
    return "static" if name == "static" else "steal"


def _measure_store() -> tuple[float, float]:
    """Seconds of a call to a real store on this machine, and of each further key in one call."""
    coordinator = TCPStoreCoordinator(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), "bench", 0, 1)
    keys = [f"key/{number}" for number in range(128)]
    for key in keys:
        coordinator.add(key, 0)
    one_s = _time(lambda: coordinator.add(keys[0], 1), 2000)
    many_s = _time(lambda: coordinator.get_many(keys), 200)
    return one_s, max(0.0, many_s - one_s) / len(keys)


def _time(call: Any, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


if __name__ == "__main__":
    main()
