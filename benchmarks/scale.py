"""Simulates the scheduling of a thousand GPUs and ten million images: the real code on a virtual clock.

    python benchmarks/scale.py [--ranks 1000] [--tasks 10000000] [--only chunks|steal] [--json FILE]

`chunks` is what engine=ray does: `ChunkDealer` deals minutes of work to workers, which load a model first. Nodes of
eight GPUs are lost and join. `steal` is what the ranks of one launch do: shards, and `WorkSource` steals. Ranks are
lost; none can join. An image takes 0.75, 1.5, 3 or 6 s on the faster GPUs, and twice as long on a third of the nodes.

Nothing of a network, a store or a GPU is in it. What the scheduler costs is measured: its calls are timed.
"""

from __future__ import annotations

import argparse
import copy
import heapq
import json
import random
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.parallel.chunking import Chunk, ChunkDealer, Pile
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.sharding import contiguous_shards
from fluxexp.parallel.stealing import WorkSource, prepare_queue

T = TypeVar("T")
_SECONDS = (0.75, 1.5, 3.0, 6.0)
_SLOWER = 2.0
_NODE = 8
_LOAD_S = 120.0
"""A worker loads its model for so long."""
_CHUNK_S = 90.0
_LEAD_S = 5.0
"""As `chunk_supply.py`: a worker asks for its next chunk when it has less work than this."""
_REPORT_S = 5.0
"""As `foreman.py`: without news, each of a thousand workers reports every five seconds."""
_BATCH = 4
_DETECTION_S = 10.0
"""A lost node is noticed after so long (Ray's health checks)."""
_LOST_AFTER_S = 120.0
"""`parallelism.lost_after_s`"""


def main() -> None:
    """Run the simulations, print their figures, and write them to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=10_000_000)
    parser.add_argument("--only", choices=["chunks", "steal"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    rng = random.Random(0)
    costs = array("d", rng.choices(_SECONDS, k=args.tasks))
    report: dict[str, Any] = {"ranks": args.ranks, "tasks": args.tasks}
    for name, simulate in (("chunks", simulate_chunks), ("steal", simulate_stealing)):
        if args.only in (None, name):
            for num_lost in (0, args.ranks // 20):
                figures = simulate(costs, args.ranks, num_lost)
                report[f"{name}_{num_lost}_lost"] = asdict(figures)
                print(f"{name}, {num_lost} of {args.ranks} ranks lost: {figures}", flush=True)
    report |= {"git_revision": git_revision(), "versions": versions()}
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


@dataclass(kw_only=True)
class ScaleFigures:
    """What a simulation found."""

    makespan_s: float
    bound_s: float
    """Time in which ranks of these speeds, while they live and have a model, can do the work: no schedule is faster."""
    num_twice: int
    """Tasks that were begun by a rank that was lost, and made again."""
    scheduler_us: float
    """Time of one take of tasks in the scheduler, measured on this machine, in microseconds."""
    scheduler_share: float
    """Part of the makespan for which the process that schedules is busy with it. `steal`: of each rank."""
    messages_per_s: float
    """Of all ranks together with the leading process (`chunks`), or with the coordinator (`steal`), on average."""
    keys_read: int
    """Keys that all ranks read from the coordinator (`steal`)."""
    image_puts_per_s: float
    """Objects of images that a store takes per second, one for each."""

    def __str__(self) -> str:
        return (
            f"makespan {self.makespan_s:.0f} s, {self.makespan_s / self.bound_s - 1:+.2%} over the bound; "
            f"{self.num_twice} tasks twice; {self.scheduler_us:.0f} us per take, "
            f"{self.scheduler_share:.2%} of the time; {self.messages_per_s:.0f} messages/s, "
            f"{self.keys_read} keys read; {self.image_puts_per_s:.0f} images/s"
        )


@dataclass
class _Stopwatch:
    """Measures the real time of the scheduler's calls."""

    seconds: float = 0.0
    calls: int = 0

    def __call__(self, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = call()
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return result


@dataclass(slots=True)
class _SimulatedWorker:
    """A worker of the simulation, with the chunks that it has, in order."""

    pace: float
    ready_s: float
    """When it has loaded its model."""
    lost_s: float
    free_s: float = 0.0
    """When it has made all that it has."""
    chunks: list[tuple[Chunk, float]] = field(default_factory=list)
    """Each with the time at which its first task begins."""


def _pace(rank: int) -> float:
    return _SLOWER if rank // _NODE % 3 == 2 else 1.0


def _lost_at(num_ranks: int, num_lost: int, about_s: float) -> dict[int, float]:
    """When each lost rank is lost: whole nodes, at random times, the last one near the end."""
    rng = random.Random(1)
    nodes = rng.sample(range(num_ranks // _NODE), num_lost // _NODE)
    times = [0.98 * about_s, *(rng.uniform(0, about_s) for _ in nodes)]
    at = dict(zip(nodes, times, strict=False))
    return {rank: when for node, when in at.items() for rank in range(node * _NODE, (node + 1) * _NODE)}


def _bound_s(total: float, lives: Sequence[tuple[float, float, float]]) -> float:
    """When ranks that live from a time to another, with a speed, have done work of `total` at the earliest."""
    changes = sorted([(begin, speed) for begin, _, speed in lives] + [(end, -speed) for _, end, speed in lives])
    done = speed_now = at_s = 0.0
    for when, change in changes:
        if when == float("inf"):
            break
        if done + speed_now * (when - at_s) >= total:
            break
        done += speed_now * (when - at_s)
        at_s, speed_now = when, speed_now + change
    return at_s + (total - done) / speed_now


def simulate_chunks(costs: Sequence[float], num_ranks: int, num_lost: int) -> ScaleFigures:
    """Workers that pull chunks. As many workers as are lost join later, on other nodes."""
    total = sum(costs)
    about_s = total / sum(1 / _pace(rank) for rank in range(num_ranks))
    lost_at = _lost_at(num_ranks, num_lost, about_s)
    workers = {
        rank: _SimulatedWorker(_pace(rank), _LOAD_S, lost_at.get(rank, float("inf"))) for rank in range(num_ranks)
    }
    joins = {num_ranks + place: when + 600.0 for place, when in enumerate(sorted(lost_at.values()))}
    for rank, when in joins.items():
        workers[rank] = _SimulatedWorker(_pace(rank), when + _LOAD_S, float("inf"))
    stopwatch = _Stopwatch()
    dealer = stopwatch(lambda: ChunkDealer([Pile(costs, _BATCH)], _CHUNK_S))
    stopwatch.seconds, stopwatch.calls = 0.0, 0
    # (time, order, what, rank): the order makes times unique.
    events: list[tuple[float, int, str, int]] = []
    numbers = iter(range(1 << 62))

    def at(when: float, what: str, rank: int) -> None:
        heapq.heappush(events, (when, next(numbers), what, rank))

    for rank, worker in workers.items():
        at(worker.ready_s, "join", rank)
        if worker.lost_s < float("inf"):
            at(worker.lost_s + _DETECTION_S, "lost", rank)
    makespan_s, num_twice, idle = 0.0, 0, set[int]()
    left = len(costs)
    while events and left:
        now_s, _, what, rank = heapq.heappop(events)
        worker = workers[rank]
        if what == "lost":
            if worker.ready_s > worker.lost_s:
                continue
            makespan_s, made, given = _lose(dealer, worker, rank, stopwatch, costs, makespan_s)
            left, num_twice = left - made, num_twice + given
            for other in sorted(idle):
                at(now_s, "ask", other)
            idle.clear()
            continue
        if now_s >= worker.lost_s:
            continue
        if what == "join":
            dealer.join(rank)
            stopwatch(lambda rank=rank: dealer.group_for(rank))  # type: ignore[misc]
        while worker.chunks and _end(worker, 0, costs) <= now_s + 1e-9:
            chunk, _ = worker.chunks.pop(0)
            stopwatch(lambda rank=rank, number=chunk.number: dealer.finish(rank, number))  # type: ignore[misc]
            dealer.note_pace(rank, worker.pace)
            left -= len(chunk.positions)
            makespan_s = max(makespan_s, now_s)
        if what == "finish":
            continue
        chunk_or_none: Chunk | None = stopwatch(lambda rank=rank: dealer.deal(rank))  # type: ignore[misc]
        if chunk_or_none is None:
            idle.add(rank)
            continue
        start_s = max(now_s, worker.free_s)
        worker.chunks.append((chunk_or_none, start_s))
        worker.free_s = start_s + worker.pace * _cost(chunk_or_none.positions, costs)
        at(max(now_s, worker.free_s - _LEAD_S), "ask", rank)
        at(worker.free_s, "finish", rank)
    lives = [(w.ready_s, max(w.ready_s, w.lost_s), 1 / w.pace) for w in workers.values()]
    num_messages = stopwatch.calls + makespan_s / _REPORT_S * num_ranks
    return ScaleFigures(
        makespan_s=makespan_s,
        bound_s=_bound_s(total, lives),
        num_twice=num_twice,
        scheduler_us=1e6 * stopwatch.seconds / stopwatch.calls,
        scheduler_share=stopwatch.seconds / makespan_s,
        messages_per_s=num_messages / makespan_s,
        keys_read=0,
        image_puts_per_s=len(costs) / makespan_s,
    )


def _cost(positions: Sequence[int], costs: Sequence[float]) -> float:
    if isinstance(positions, range):
        return sum(costs[positions.start : positions.stop])
    return sum(costs[position] for position in positions)


def _end(worker: _SimulatedWorker, number: int, costs: Sequence[float]) -> float:
    chunk, start_s = worker.chunks[number]
    return start_s + worker.pace * _cost(chunk.positions, costs)


def _lose(
    dealer: ChunkDealer,
    worker: _SimulatedWorker,
    rank: int,
    stopwatch: _Stopwatch,
    costs: Sequence[float],
    makespan_s: float,
) -> tuple[float, int, int]:
    """Give back what a lost worker has not made. Returns the makespan, and the tasks made and begun in vain."""
    starts = {chunk.number: start_s for chunk, start_s in worker.chunks}
    num_made = num_begun = 0
    for chunk in stopwatch(lambda: dealer.leave(rank)):
        at_s, made = starts[chunk.number], 0
        for position in chunk.positions:
            if at_s + worker.pace * costs[position] > worker.lost_s:
                num_begun += at_s < worker.lost_s
                break
            at_s += worker.pace * costs[position]
            made += 1
        makespan_s = max(makespan_s, at_s if made else 0.0)
        num_made += made
        rest = list(chunk.positions[made:])
        stopwatch(lambda chunk=chunk, rest=rest: dealer.give_back(chunk, rest))  # type: ignore[misc]
    return makespan_s, num_made, num_begun


class _CountingCoordinator(LocalCoordinator):
    """Counts the calls and the keys that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.keys = 0
        self._values: dict[str, Any] = {}

    def put(self, key: str, value: Any) -> None:
        self.calls += 1
        self._values[key] = value

    def add(self, key: str, amount: int) -> int:
        self.calls += 1
        self._values[key] = self._values.get(key, 0) + amount
        return int(self._values[key])

    def get_many(self, keys: Sequence[str]) -> list[Any]:
        self.calls += 1
        self.keys += len(keys)
        return [self._values[key] for key in keys]


def simulate_stealing(costs: Sequence[float], num_ranks: int, num_lost: int) -> ScaleFigures:
    """Ranks with shards, which steal. After a round, the tasks of lost ranks are made in another one."""
    total = sum(costs)
    about_s = total / sum(1 / _pace(rank) for rank in range(num_ranks))
    lost_at = _lost_at(num_ranks, num_lost, about_s)
    coordinator, stopwatch = _CountingCoordinator(), _Stopwatch()
    round_s, left = _round(costs, range(num_ranks), lost_at, coordinator, stopwatch)
    makespan_s, num_twice = _LOAD_S + round_s, len(left)
    if left:
        alive = [rank for rank in range(num_ranks) if rank not in lost_at]
        second_s, _ = _round(array("d", left), alive, {}, coordinator, stopwatch)
        # Rank 0 has to wait until it takes the ranks for lost, unless that was long before.
        silent_s = round_s - max(lost_at.values())
        makespan_s += max(0.0, _LOST_AFTER_S - silent_s) + second_s
    lives = [(_LOAD_S, _LOAD_S + lost_at.get(rank, float("inf")), 1 / _pace(rank)) for rank in range(num_ranks)]
    return ScaleFigures(
        makespan_s=makespan_s,
        bound_s=_bound_s(total, lives),
        num_twice=num_twice,
        scheduler_us=1e6 * stopwatch.seconds / stopwatch.calls,
        scheduler_share=stopwatch.seconds / num_ranks / makespan_s,
        messages_per_s=coordinator.calls / makespan_s,
        keys_read=coordinator.keys,
        image_puts_per_s=len(costs) / makespan_s,
    )


def _round(
    costs: Sequence[float],
    ranks: Sequence[int],
    lost_at: dict[int, float],
    coordinator: _CountingCoordinator,
    stopwatch: _Stopwatch,
) -> tuple[float, list[float]]:
    """Seconds of a round, and the costs of the tasks that it leaves."""
    shards = [costs[shard.start : shard.stop] for shard in contiguous_shards(len(costs), len(ranks))]
    prepare_queue(coordinator, len(ranks))
    for place in range(len(ranks)):  # counters of an earlier round
        coordinator._values[f"work/{place}"] = 0
    coordinator.calls = coordinator.calls - 2 * len(ranks)
    sources = list(_sources(coordinator, shards, len(ranks)))
    ready = [(0.0, place, 0.0, 0.0) for place in range(len(ranks))]
    end_s, left = 0.0, list[float]()
    while ready:
        now_s, place, seconds, cost = heapq.heappop(ready)
        source = sources[place]
        if cost:
            source.report(seconds, cost)
        taken = stopwatch(lambda source=source: source.take(_BATCH))  # type: ignore[misc]
        if taken is None:
            continue
        cost = source.cost(taken)
        seconds = _pace(ranks[place]) * cost
        if now_s + seconds > lost_at.get(ranks[place], float("inf")):
            left += shards[taken.owner][taken.first : taken.last]
            continue  # the rank is lost, with its batch
        end_s = max(end_s, now_s + seconds)
        heapq.heappush(ready, (now_s + seconds, place, seconds, cost))
    return end_s, [*left, *_untaken(coordinator, shards)]


def _sources(coordinator: _CountingCoordinator, shards: Sequence[Sequence[float]], number: int) -> Iterator[WorkSource]:
    """The view of each rank. They share the sums of costs, which each process has for itself."""
    first = WorkSource(coordinator, 0, shards, "steal")
    for rank in range(number):
        source = copy.copy(first)
        source._rank = rank
        source._own_left = len(shards[rank])
        yield source


def _untaken(coordinator: _CountingCoordinator, shards: Sequence[Sequence[float]]) -> Iterator[float]:
    """Costs of the tasks that no rank has taken: the last ones of lost ranks, for which others are too slow."""
    for place, shard in enumerate(shards):
        counter = int(coordinator._values[f"work/{place}"])
        front, back = counter & ((1 << 32) - 1), counter >> 32
        yield from shard[front : max(front, len(shard) - back)]


if __name__ == "__main__":
    main()
