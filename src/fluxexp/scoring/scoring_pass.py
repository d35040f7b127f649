"""The scoring pass. Rank 0 finds the pending scores; each rank works on its shard, then helps slower ranks."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Collection, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import numpy as np

from fluxexp.config.schema import NoMetricsConfig
from fluxexp.errors import FluxexpError, LostRankError
from fluxexp.interruption import Interrupted, interruption
from fluxexp.metrics.metric_set import MetricSet, make_metrics
from fluxexp.packing import pack_numbers, unpack_numbers
from fluxexp.parallel.sharding import contiguous_shards
from fluxexp.parallel.stealing import WorkSource, prepare_queue
from fluxexp.parallel.topology import Topology
from fluxexp.plan import Plan
from fluxexp.scoring.pending_scores import ScoringRun, feature_stores, features_name, find_pending_scores
from fluxexp.scoring.scorer import Entry, Scorer
from fluxexp.scoring.scoring_messages import QUEUE_NAME, SCORED, SCORING, RankScores, ScoringAnnouncement
from fluxexp.scoring.scoring_report import ScoringReport, report_of
from fluxexp.storage.feature_store import SetScore
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.telemetry import Phase, say

_CHUNK = 8
"""Images per thread that a rank takes at once. At the end of a chunk, threads wait for the slowest one."""
_MOST_THREADS = 8
_POLL_S = 0.02


def score_runs(
    topology: Topology,
    plans: Sequence[Plan],
    references: Sequence[int | None],
    sweep: SweepDirectory | None,
    ranks: Collection[int],
) -> ScoringReport:
    """Compute the missing scores of `plans` with the metrics of the first plan. Every rank of `ranks` calls it.

    It raises no error. The report contains errors: the images exist, and scoring can be repeated. After an interruption
    it ends as soon as possible.

    Args:
        topology: of this rank.
        plans: the runs, the same on every rank.
        references: for each run, the number of its reference run. Only rank 0 needs it.
        sweep: keeps distances from reference images; None for a single run.
        ranks: the ranks that take part, including rank 0. Only rank 0 needs it.
    """
    start_s = time.time()
    runs: Sequence[ScoringRun] = ()
    metric_set = MetricSet((), ())
    with ExitStack() as display:
        try:
            runs, metric_set = _plan_scoring(topology, plans, references, sweep)
            result = RankScores(omitted=metric_set.omitted)
            if runs:
                with interruption.raising():
                    result = _score_shard(topology, runs, metric_set, sweep, display)
        except Interrupted as error:
            knows_pending = topology.is_main or runs
            result = RankScores(error=f"interrupted ({error})" if knows_pending else None)
        except Exception as error:
            if not isinstance(error, FluxexpError):
                traceback.print_exc()  # an unexpected error: print the traceback for developers
            result = RankScores(error=f"{type(error).__name__}: {error}")
        SCORED.publish_own(topology.coordinator, result)
        if not topology.is_main:
            return ScoringReport()
        results, lost = _wait_for_scores(topology, ranks)
    if any(result.num_scored or result.error for result in results):  # other ranks have also written scores
        _refresh_scores(plans, sweep)
    try:
        if lost and runs:
            results.append(_score_rest(topology, plans, references, sweep, metric_set, lost))
        omitted = _score_sets(plans, metric_set) if metric_set.extractors else {}
    except (Exception, Interrupted) as error:  # the features cannot be read, or the distances cannot be written
        omitted = {}
        results[0] = replace(results[0], error=results[0].error or f"{type(error).__name__}: {error}")
    return report_of(results, time.time() - start_s, omitted)


def _wait_for_scores(topology: Topology, ranks: Collection[int]) -> tuple[list[RankScores], list[int]]:
    """What each rank has scored, rank 0 first, and the lost ranks. After an interruption it waits for no rank."""
    results, lost = [], []
    for rank in sorted(ranks):
        channel, check = SCORED.at(rank), topology.liveness.expect(rank)
        while (result := channel.read(topology.coordinator)) is None and interruption.requested is None:
            try:
                check()
            except LostRankError:
                result = channel.read(topology.coordinator)
                break
            time.sleep(_POLL_S)
        if result is not None:
            results.append(result)
        elif interruption.requested is None:
            lost.append(rank)
    return results, lost


def _score_rest(
    topology: Topology,
    plans: Sequence[Plan],
    references: Sequence[int | None],
    sweep: SweepDirectory | None,
    metric_set: MetricSet,
    lost: Sequence[int],
) -> RankScores:
    """On rank 0: compute the scores that lost ranks have taken and not computed."""
    _refresh_scores(plans, sweep)
    runs = find_pending_scores(plans, references, sweep, metric_set)
    entries = _entries(runs)
    if not entries:
        return RankScores()
    say(f"note       rank(s) {', '.join(map(str, lost))} left {len(entries)} images without scores")
    threads = _threads(topology)
    with (
        interruption.raising(),
        Scorer(runs, metric_set, sweep, threads) as scorer,
        Phase("scoring", "images", len(entries)) as phase,
    ):
        for start in range(0, len(entries), _CHUNK * threads):
            scorer.score(entries[start : start + _CHUNK * threads])
            topology.liveness.touch()
            phase.update(scorer.num_scored)
    _refresh_scores(plans, sweep)
    return RankScores(scorer.num_scored, scorer.num_errors)


def _refresh_scores(plans: Sequence[Plan], sweep: SweepDirectory | None) -> None:
    for reader in [*(plan.directory.reader for plan in plans), *([sweep.reader] if sweep else [])]:
        reader.refresh_scores()


def _plan_scoring(
    topology: Topology, plans: Sequence[Plan], references: Sequence[int | None], sweep: SweepDirectory | None
) -> tuple[Sequence[ScoringRun], MetricSet]:
    """The runs with their pending scores (no runs if nothing is pending), and the metrics."""
    if not topology.is_main:
        with interruption.raising():
            announced = SCORING.wait(topology.coordinator, topology.liveness.expect(0))
        if announced.pending is None:
            return (), MetricSet((), ())
        runs = [
            ScoringRun(plan, unpack_numbers(pending), reference)
            for plan, pending, reference in zip(plans, announced.pending, announced.references, strict=True)
        ]
        return runs, make_metrics(plans[0].config.metrics, topology.device)
    try:
        with nullcontext() if isinstance(plans[0].config.metrics, NoMetricsConfig) else interruption.raising():
            metric_set = make_metrics(plans[0].config.metrics, topology.device)
            runs = find_pending_scores(plans, references, sweep, metric_set)
    except (Exception, Interrupted):
        SCORING.publish(topology.coordinator, ScoringAnnouncement(None))
        raise
    num_pending = sum(len(run.pending) for run in runs)
    if not num_pending:
        SCORING.publish(topology.coordinator, ScoringAnnouncement(None))
        return (), metric_set
    prepare_queue(topology.coordinator, topology.world_size, QUEUE_NAME)
    pending = tuple(pack_numbers(run.pending, run.plan.num_tasks) for run in runs)
    SCORING.publish(topology.coordinator, ScoringAnnouncement(pending, tuple(references)))
    return runs, metric_set


def _score_sets(plans: Sequence[Plan], metric_set: MetricSet) -> dict[str, str]:
    """Compute distances between all results and all ground truths of a run. Returns the omitted metrics with the
    reason."""
    from fluxexp.metrics.full.set_distances import set_scores, too_few

    omitted: dict[str, str] = {}
    for plan in plans:
        made = np.flatnonzero(plan.results().is_made).tolist()
        keys = [features_name(task, plan.scored_content(task.index)) for task in plan.tasks(made)]
        values: dict[str, SetScore] = {}
        for extractor, store in zip(metric_set.extractors, feature_stores(plan, metric_set), strict=True):
            sets = store.read(keys)
            values |= set_scores(extractor.metrics, *sets)
            reasons = {name: too_few(name, *sets) for name in extractor.metrics}
            omitted |= {name: reason for name, reason in reasons.items() if reason is not None}
        if values or plan.directory.reader.set_scores()[0]:  # those of an earlier pass may be of too few images
            plan.directory.writer.write_set_scores(values, len(keys))
    return omitted


def _score_shard(
    topology: Topology,
    runs: Sequence[ScoringRun],
    metric_set: MetricSet,
    sweep: SweepDirectory | None,
    display: ExitStack,
) -> RankScores:
    """Score this rank's shard, then work that other ranks have not started. Rank 0 shows it until `display` ends."""
    entries = _entries(runs)
    shards = contiguous_shards(len(entries), topology.world_size)
    costs = [[1.0] * len(shard) for shard in shards]
    source = WorkSource(topology.coordinator, topology.rank, costs, "steal", QUEUE_NAME)
    threads = _threads(topology)
    phase = display.enter_context(Phase("scoring", "images", len(entries))) if topology.is_main else None
    with Scorer(runs, metric_set, sweep, threads) as scorer:
        while (taken := source.take(_CHUNK * threads)) is not None:
            start_s = time.perf_counter()
            scorer.score(entries[shards[taken.owner][place]] for place in range(taken.first, taken.last))
            source.report(time.perf_counter() - start_s, source.cost(taken))
            topology.liveness.touch()
            if phase is not None:
                phase.update(len(entries) - source.num_left())
    return RankScores(scorer.num_scored, scorer.num_errors, metric_set.omitted)


def _entries(runs: Sequence[ScoringRun]) -> list[Entry]:
    """All images, with those of one sample together, so that the sample is read once."""
    entries = [(number, task) for number, run in enumerate(runs) for task in run.pending]
    datasets = {id(run.plan.dataset): place for place, run in reversed(list(enumerate(runs)))}

    def place(entry: Entry) -> tuple[int, int, int, int]:
        plan = runs[entry[0]].plan
        return datasets[id(plan.dataset)], plan.sample_index(entry[1]), entry[1], entry[0]

    return sorted(entries, key=place)


def _threads(topology: Topology) -> int:
    """Number of threads: this rank's part of the machine's cores. They do not change rounding: an image has one."""
    num_local_ranks = topology.local_world_size or topology.world_size
    return max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0)) // num_local_ranks))
