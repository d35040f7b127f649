"""Scores images on several threads. If an image cannot be read, only its own scores are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from fluxexp.metrics.case import Case, MetricScores, ScoredSample
from fluxexp.metrics.metric_set import MetricSet
from fluxexp.plan import Plan
from fluxexp.records import Task
from fluxexp.scoring.pending_scores import (
    ScoringRun,
    distance_identity,
    feature_stores,
    features_name,
    reference_key,
    score_identity,
)
from fluxexp.scoring.shared_samples import SharedSample, SharedSamples, read_result, try_to
from fluxexp.storage.feature_store import FeatureStore
from fluxexp.storage.scores import ScoreLine
from fluxexp.storage.sweep_directory import SweepDirectory

if TYPE_CHECKING:
    from fluxexp.metrics.full.feature_extractors import Extractor

Entry = tuple[int, int]
"""(number of the run, number of the task in it)."""


class Scorer:
    """One rank's scorer. Use it as a context manager: it owns threads."""

    def __init__(
        self, runs: Sequence[ScoringRun], metric_set: MetricSet, sweep: SweepDirectory | None, threads: int
    ) -> None:
        self._runs = runs
        self._metric_set = metric_set
        self._writers = [run.plan.directory.writer.scores() for run in runs]
        self._distances = sweep.scores() if sweep else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
        self._samples = SharedSamples()
        self.num_scored = 0
        self.num_errors = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._flush()

    def _flush(self) -> None:
        """Write the scores that wait in memory, so that rank 0 can read them. StorageError if that fails."""
        for writer in (*self._writers, *([self._distances] if self._distances else [])):
            writer.flush()

    def score(self, entries: Iterable[Entry]) -> None:
        """Score images and store the results. Images of one sample should be consecutive: the sample is read once.

        Raises:
            StorageError: scores cannot be written.
        """
        for run, own, distance in self._pool.map(self._score_image, entries):
            self._writers[run].append(own)
            if distance is not None and self._distances is not None:
                self._distances.append(distance)
            self.num_scored += 1
            self.num_errors += bool(own.errors or (distance and distance.errors))

    def _score_image(self, entry: Entry) -> tuple[int, ScoreLine, ScoreLine | None]:
        number, place = entry
        run = self._runs[number]
        task = run.plan.task(place)
        sample = self._samples.of(run.plan, task.index)
        case = try_to(lambda: _case(run.plan, task, sample.scored(run.plan.config)))
        own = _line(
            task.key,
            (
                (metric.names, score_identity(metric.identity, sample.content), _apply(metric.score, case))
                for metric in self._metric_set.metrics
            ),
        )
        failed = self._store_features(run.plan, features_name(task, sample.content), case)
        own = replace(own, errors={**own.errors, **failed})
        return number, own, self._distance(run, task, case, sample)

    def _store_features(self, plan: Plan, name: str, case: Case | Exception) -> dict[str, str]:
        """Compute and keep the features of a result and its ground truth. Returns errors by metric."""
        errors: dict[str, str] = {}
        for extractor, store in zip(self._metric_set.extractors, feature_stores(plan, self._metric_set), strict=True):

            def take(known: Case, extractor: Extractor = extractor, store: FeatureStore = store) -> MetricScores:
                real = None if known.truth is None else extractor.features(known.truth)
                store.write(name, extractor.features(known.result), real)
                return {}

            if name not in store and isinstance(error := _apply(take, case), Exception):
                errors |= dict.fromkeys(extractor.metrics, f"{type(error).__name__}: {error}")
        return errors

    def _distance(self, run: ScoringRun, task: Task, case: Case | Exception, sample: SharedSample) -> ScoreLine | None:
        if run.reference is None or self._distances is None:
            return None
        other = self._runs[run.reference].plan
        key = reference_key(other, task)
        reference = None if key is None else sample.reference(other, key)
        if key is None or reference is None:
            return None

        def measured(measure: Callable[[Case, np.ndarray], MetricScores]) -> MetricScores | Exception:
            if isinstance(reference, Exception):
                return reference
            return _apply(lambda known: measure(known, reference), case)

        return _line(
            task.key,
            (
                (
                    metric.names,
                    score_identity(distance_identity(metric.identity, key), sample.content),
                    measured(metric.measure),
                )
                for metric in self._metric_set.pair_metrics
            ),
        )


def _line(key: str, parts: Iterable[tuple[Sequence[str], str, MetricScores | Exception]]) -> ScoreLine:
    metrics: dict[str, float | None] = {}
    by: dict[str, str] = {}
    errors: dict[str, str] = {}
    for names, identity, scores in parts:
        metrics |= dict.fromkeys(names) if isinstance(scores, Exception) else _finite(scores)
        if identity:
            by |= dict.fromkeys(names, identity)
        if isinstance(scores, Exception):
            errors |= dict.fromkeys(names, f"{type(scores).__name__}: {scores}")
    return ScoreLine(key, metrics, by, errors)


def _finite(scores: MetricScores) -> Mapping[str, float | None]:
    """Scores as JSON numbers: None for infinity and NaN, and six significant digits."""
    return {
        name: float(f"{value:.6g}") if value is not None and np.isfinite(value) else None
        for name, value in scores.items()
    }


def _case(plan: Plan, task: Task, sample: ScoredSample | Exception) -> Case:
    if isinstance(sample, Exception):
        raise sample
    with read_result(plan, task.key) as image:
        return sample.case(image)


def _apply(function: Callable[[Case], MetricScores], case: Case | Exception) -> MetricScores | Exception:
    """Result of `function`, or the error of the case or of `function`."""
    return case if isinstance(case, Exception) else try_to(lambda: function(case))
