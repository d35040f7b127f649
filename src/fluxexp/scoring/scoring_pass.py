"""The scoring pass of all ranks: rank 0 says what is left to score, each rank takes its share, then helps others."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fluxexp.errors import FluxexpError
from fluxexp.metrics.metric_set import MetricSet, make_metrics
from fluxexp.parallel.sharding import contiguous_shards
from fluxexp.parallel.stealing import WorkSource, prepare_queue
from fluxexp.parallel.topology import Topology
from fluxexp.plan import Plan, pack_numbers, unpack_numbers
from fluxexp.scoring.messages import QUEUE_NAME, SCORED, SCORING, RankScores, ScoringAnnouncement
from fluxexp.scoring.pending_scores import ScoringRun, feature_stores, find_pending_scores
from fluxexp.scoring.scorer import Entry, Scorer
from fluxexp.storage.feature_store import write_set_scores
from fluxexp.storage.scores import read_scores
from fluxexp.telemetry import say

_CHUNK = 4
"""Images that a thread is given at a time."""
_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class ScoringReport:
    """How a scoring pass went, on rank 0."""

    num_scored: int = 0
    num_errors: int = 0
    """Images of which some metric failed: their score lines say why."""
    wall_s: float = 0.0
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Metrics that could not be had, and why."""
    error: str | None = None
    """Why the pass did not come to its end; what was scored is kept."""

    def to_json(self) -> dict[str, Any]:
        """As `summary.json` has it."""
        return {
            "num_scored": self.num_scored,
            "num_errors": self.num_errors,
            "wall_s": round(self.wall_s, 3),
            "omitted": dict(self.omitted),
            "error": self.error,
        }


def score_runs(
    topology: Topology,
    plans: Sequence[Plan],
    references: Sequence[int | None],
    sweep: Path | None,
    ranks: Collection[int],
) -> ScoringReport:
    """Score what is not scored yet of `plans`, by the metrics of the first; on every one of `ranks`.

    Whatever goes wrong is in the report: the images are made, and scoring can be done again.

    Args:
        topology: of this rank.
        plans: the runs, the same on every rank.
        references: rank 0's: for each run the number of the one it is measured from.
        sweep: the sweep's directory, which keeps distances from references.
        ranks: those that take part, rank 0 among them. Only rank 0 needs to know.
    """
    start_s = time.time()
    distances = _distances(sweep) if sweep else None
    made = MetricSet((), ())
    try:
        runs, made = _agree(topology, plans, references, distances)
        result = _work(topology, runs, made, distances) if runs else RankScores(omitted=made.omitted)
    except Exception as error:
        if not isinstance(error, FluxexpError):
            traceback.print_exc()  # not foreseen: whoever looks into it needs the place
        result = RankScores(error=f"{type(error).__name__}: {error}")
    SCORED.publish_own(topology.coordinator, result)
    if not topology.is_main:
        return ScoringReport()
    results = [SCORED.at(rank).wait(topology.coordinator) for rank in sorted(ranks)]
    try:
        without = _score_sets(plans, made) if made.extractors else {}
    except Exception as error:  # features that cannot be read, distances that cannot be written
        without = {}
        results[0] = replace(results[0], error=results[0].error or f"{type(error).__name__}: {error}")
    return _report(results, time.time() - start_s, without)


def read_distances(sweep: Path) -> dict[str, dict[str, float | None]]:
    """How far images of a sweep's points are from their references', by task key and metric."""
    return read_scores(_distances(sweep))


def _distances(sweep: Path) -> Path:
    return sweep / "scores"


def _agree(
    topology: Topology, plans: Sequence[Plan], references: Sequence[int | None], distances: Path | None
) -> tuple[Sequence[ScoringRun], MetricSet]:
    """The runs with what is left to score, none where that is nothing; and by what."""
    if not topology.is_main:
        announced = SCORING.wait(topology.coordinator)
        if announced.pending is None:
            return (), MetricSet((), ())
        runs = [
            ScoringRun(plan, unpack_numbers(pending), reference)
            for plan, pending, reference in zip(plans, announced.pending, announced.references, strict=True)
        ]
        return runs, make_metrics(plans[0].config.metrics, topology.device)
    try:
        made = make_metrics(plans[0].config.metrics, topology.device)
        runs = find_pending_scores(plans, references, distances, made)
    except Exception:
        SCORING.publish(topology.coordinator, ScoringAnnouncement(None))
        raise
    num_pending = sum(len(run.pending) for run in runs)
    if not num_pending:
        SCORING.publish(topology.coordinator, ScoringAnnouncement(None))
        return (), made
    say(f"scoring    {num_pending} images")
    prepare_queue(topology.coordinator, topology.world_size, QUEUE_NAME)
    pending = tuple(pack_numbers(list(run.pending), run.plan.num_tasks) for run in runs)
    SCORING.publish(topology.coordinator, ScoringAnnouncement(pending, tuple(references)))
    return runs, made


def _score_sets(plans: Sequence[Plan], made: MetricSet) -> dict[str, str]:
    """Distances between all results of a run and all their truths. Returns those that a run has none of, and why."""
    from fluxexp.metrics.full.set_distances import set_scores, too_few

    without: dict[str, str] = {}
    for plan in plans:
        keys = plan.finished()
        values: dict[str, float] = {}
        for extractor, store in zip(made.extractors, feature_stores(plan, made), strict=True):
            sets = store.read(keys)
            values |= set_scores(extractor.metrics, *sets)
            if reason := too_few(*sets):
                without |= dict.fromkeys(extractor.metrics, reason)
        if values:
            write_set_scores(plan.directory.scores, values, len(keys))
    return without


def _work(topology: Topology, runs: Sequence[ScoringRun], made: MetricSet, distances: Path | None) -> RankScores:
    """This rank's share, then what others have not begun."""
    entries = _entries(runs)
    shards = contiguous_shards(len(entries), topology.world_size)
    costs = [[1.0] * len(shard) for shard in shards]
    source = WorkSource(topology.coordinator, topology.rank, costs, "steal", QUEUE_NAME)
    threads = _threads(topology, runs[0].plan)
    with Scorer(runs, made, distances, threads) as scorer:
        while (taken := source.take(_CHUNK * threads)) is not None:
            start_s = time.perf_counter()
            scorer.score(entries[shards[taken.owner][place]] for place in range(taken.first, taken.last))
            source.report(time.perf_counter() - start_s, source.cost(taken))
    return RankScores(scorer.num_scored, scorer.num_errors, made.omitted)


def _entries(runs: Sequence[ScoringRun]) -> list[Entry]:
    """All images, those of a sample together: it is read once."""
    entries = [(number, task) for number, run in enumerate(runs) for task in run.pending]
    datasets = {id(run.plan.dataset): place for place, run in reversed(list(enumerate(runs)))}

    def place(entry: Entry) -> tuple[int, int, int, int]:
        plan = runs[entry[0]].plan
        return datasets[id(plan.dataset)], plan.sample_index(entry[1]), entry[1], entry[0]

    return sorted(entries, key=place)


def _threads(topology: Topology, plan: Plan) -> int:
    """On a CPU as many as the rank was given; beside a GPU its part of the machine's cores."""
    if topology.device.type == "cpu":
        return plan.config.parallelism.cpu_threads
    num_local_ranks = topology.local_world_size or topology.world_size
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // num_local_ranks))


def _report(results: Sequence[RankScores], wall_s: float, without: Mapping[str, str]) -> ScoringReport:
    errors = [result.error for result in results if result.error]
    report = ScoringReport(
        num_scored=sum(result.num_scored for result in results),
        num_errors=sum(result.num_errors for result in results),
        wall_s=wall_s,
        omitted={**results[0].omitted, **without},
        error=errors[0] if errors else None,
    )
    if report.error:
        say(
            f"scoring did not come to its end: {report.error}\n    (the same command, or fluxexp.score, continues)",
            urgent=True,
        )
    elif report.num_errors:
        say(f"scores of {report.num_errors} images failed; their lines in scores/ say why", urgent=True)
    return report
