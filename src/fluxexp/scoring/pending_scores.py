"""Finds the images that exist and whose scores are missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fluxexp.metrics.metric_set import MetricSet
from fluxexp.plan import Plan
from fluxexp.records import Task, slug
from fluxexp.storage.feature_store import FeatureStore
from fluxexp.storage.scores import Score
from fluxexp.storage.sweep_directory import SweepDirectory

Wanted = Mapping[str, Collection[str]]
"""By metric, the identities that make a stored score valid."""


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """A run, and the images to score."""

    plan: Plan
    pending: Sequence[int]
    """Numbers of the tasks whose images have missing scores."""
    reference: int | None
    """Number of the reference run; None if there is none."""


def find_pending_scores(
    plans: Sequence[Plan], references: Sequence[int | None], sweep: SweepDirectory | None, metric_set: MetricSet
) -> list[ScoringRun]:
    """The runs of `plans`, each with its pending scores.

    Args:
        plans: the runs.
        references: for each run, the number of its reference run.
        sweep: keeps distances from reference images; None to measure none.
        metric_set: the metrics to compute.
    """
    own = {name: metric.identity for metric in metric_set.metrics for name in metric.names}
    results = [plan.results() for plan in plans]
    finished = [of_plan.finished() for of_plan in results]
    known_distances = sweep.reader.score_details() if sweep else {}
    runs = []
    for number, (plan, reference) in enumerate(zip(plans, references, strict=True)):
        known = plan.directory.reader.score_details() if finished[number] else {}
        stores = feature_stores(plan, metric_set)
        pending = []
        for place in np.flatnonzero(results[number].is_made).tolist():
            task = plan.task(place)
            wanted = dict(own)
            if sweep and reference is not None:
                from_key = reference_key(plans[reference], task)
                if from_key is not None and from_key in finished[reference]:
                    wanted |= {
                        name: distance_identity(metric.identity, from_key)
                        for metric in metric_set.pair_metrics
                        for name in metric.names
                    }
            content = plan.scored_content(task.index)
            is_old = not results[number].has_inputs(place)
            valid = {name: _valid(identity, content, is_old=is_old) for name, identity in wanted.items()}
            scores = {**known.get(task.key, {}), **known_distances.get(task.key, {})}
            if _lacks(scores, valid) or any(features_name(task, content) not in store for store in stores):
                pending.append(place)
        runs.append(ScoringRun(plan, pending, reference))
    return runs


def feature_stores(plan: Plan, metric_set: MetricSet) -> list[FeatureStore]:
    """The features of a run, one store for each extractor."""
    return [plan.directory.reader.features(slug(e.name, 96)) for e in metric_set.extractors]


def reference_key(reference: Plan, task: Task) -> str | None:
    """Key of the reference's task for the same sample and image index; None if it has none."""
    per_sample = reference.config.sampling.images_per_sample
    if task.image_index >= per_sample or task.index >= len(reference.dataset):
        return None
    like = reference.task(task.index * per_sample + task.image_index)
    return like.key if (like.sample_key, like.seed) == (task.sample_key, task.seed) else None


def score_identity(metric: str, content: str) -> str:
    """Identity of a score: that of the metric, and the content of the sample's files (`Plan.scored_content`)."""
    return f"{metric} files:{content}".strip() if content else metric


def features_name(task: Task, content: str) -> str:
    """Name of the features of a result and its ground truth."""
    return f"{task.key}-{content}" if content else task.key


def _valid(identity: str, content: str, *, is_old: bool) -> set[str]:
    """The identities of valid scores. An older fluxexp did not store the content of files with results and scores."""
    return {score_identity(identity, content), *([identity] if is_old else [])}


def distance_identity(metric: str, reference: str) -> str:
    """Identity of a distance: the identity of the metric, and the key of the reference image."""
    return f"{metric} {reference}".strip()


def _lacks(known: Mapping[str, Score], wanted: Wanted) -> bool:
    """Whether a score is missing, comes from other weights, or failed. Failed scores are computed again."""
    return any(
        (score := known.get(name)) is None or score.by not in identities or score.error is not None
        for name, identities in wanted.items()
    )
