"""Scores images, sample by sample, on several threads. If an image cannot be read, only its own scores are missing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from PIL import Image

from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.metrics.case import Case, MetricScores, make_case
from fluxexp.metrics.metric_set import MetricSet
from fluxexp.passing_trouble import read_patiently
from fluxexp.plan import Plan
from fluxexp.records import Sample, Task
from fluxexp.scoring.pending_scores import (
    ScoringRun,
    distance_identity,
    feature_stores,
    features_name,
    reference_key,
    score_identity,
)
from fluxexp.storage.feature_store import FeatureStore
from fluxexp.storage.result_files import image_key
from fluxexp.storage.scores import ScoreLine
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.transparency import over_white

if TYPE_CHECKING:
    from fluxexp.metrics.full.feature_extractors import Extractor

T = TypeVar("T")
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
        self.num_scored = 0
        self.num_errors = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def score(self, entries: Iterable[Entry]) -> None:
        """Score images and store the results. Images of one sample should be consecutive: the sample is read once.

        Raises:
            StorageError: scores cannot be written.
        """
        by_sample = [list(group) for _, group in groupby(entries, self._sample_of)]
        for scored in self._pool.map(self._score_sample, by_sample):
            for run, own, distance in scored:
                self._writers[run].append(own)
                if distance is not None and self._distances is not None:
                    self._distances.append(distance)
                self.num_scored += 1
                self.num_errors += bool(own.errors or (distance and distance.errors))

    def _sample_of(self, entry: Entry) -> tuple[int, int]:
        plan = self._runs[entry[0]].plan
        return id(plan.dataset), plan.sample_index(entry[1])

    def _score_sample(self, entries: Sequence[Entry]) -> list[tuple[int, ScoreLine, ScoreLine | None]]:
        """Score all images of one sample."""
        plan = self._runs[entries[0][0]].plan
        index = plan.sample_index(entries[0][1])
        content = plan.scored_content(index)  # before the files are read: a change in between is scored again
        sample = _try(lambda: read_patiently(lambda: plan.dataset.load(index)))
        return [(run, *self._score_image(self._runs[run], number, sample, content)) for run, number in entries]

    def _score_image(
        self, run: ScoringRun, number: int, sample: Sample | Exception, content: str
    ) -> tuple[ScoreLine, ScoreLine | None]:
        task = run.plan.task(number)
        case = sample if isinstance(sample, Exception) else _try(lambda: _case(run.plan, task, sample))
        own = _line(
            task.key,
            (
                (metric.names, score_identity(metric.identity, content), _apply(metric.score, case))
                for metric in self._metric_set.metrics
            ),
        )
        failed = self._store_features(run.plan, features_name(task, content), case)
        return replace(own, errors={**own.errors, **failed}), self._distance(run, task, case, content)

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

    def _distance(self, run: ScoringRun, task: Task, case: Case | Exception, content: str) -> ScoreLine | None:
        if run.reference is None or self._distances is None:
            return None
        other = self._runs[run.reference].plan
        key = reference_key(other, task)
        if key is None or not other.directory.reader.has_image(_image_key(other, key)):
            return None
        reference = _try(lambda: _read(other, key))

        def measured(measure: Callable[[Case, np.ndarray], MetricScores]) -> MetricScores | Exception:
            if isinstance(reference, Exception):
                return reference
            return _apply(lambda known: measure(known, reference), case)

        return _line(
            task.key,
            (
                (
                    metric.names,
                    score_identity(distance_identity(metric.identity, key), content),
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


def _case(plan: Plan, task: Task, sample: Sample) -> Case:
    with _open_image(plan, task.key) as image:
        return make_case(image, sample, plan.config)


def _image_key(plan: Plan, key: str) -> str:
    return image_key(key, plan.config.output.format)


def _open_image(plan: Plan, key: str) -> Image.Image:
    return Image.open(io.BytesIO(plan.directory.reader.read_image(_image_key(plan, key))), formats=RESULT_FORMATS)


def _read(plan: Plan, key: str) -> np.ndarray:
    """RGB pixels, uint8, of shape (H, W, 3)."""
    with _open_image(plan, key) as image:
        return np.asarray(over_white(image))


def _apply(function: Callable[[Case], MetricScores], case: Case | Exception) -> MetricScores | Exception:
    """Result of `function`, or the error of the case or of `function`."""
    return case if isinstance(case, Exception) else _try(lambda: function(case))


def _try(function: Callable[[], T]) -> T | Exception:
    """Result of `function`, or its error. An error affects one image, and scoring continues with the others."""
    try:
        return function()
    except Exception as error:
        return error.with_traceback(None)
