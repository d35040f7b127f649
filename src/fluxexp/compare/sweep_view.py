"""Compares the points of a sweep: quality, cost, difference from the reference, and which point is good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.compare.decision import decide, decide_without_truths, pareto
from fluxexp.compare.pairs import compare
from fluxexp.compare.run_view import Cost, PairKey, RunView, condition_s, quality_metric, tolerance
from fluxexp.compare.settings import label, references, varied_settings
from fluxexp.compare.statistics import Mean, mean_of
from fluxexp.compare.verdicts import Candidate
from fluxexp.metrics.catalog import info


@dataclass(frozen=True, slots=True)
class PointView:
    """A point of a sweep. `run` is None if it could not be run."""

    run: RunView | None
    distances: Mapping[str, Mapping[str, float | None]]
    """Distance of each image from the image of the reference, by task key and metric."""


def sweep_figures(points: Sequence[PointView]) -> dict[str, Any]:
    """The figures in sweep.json (docs/run-directory.md); `points` contains a part for each point."""
    runs = {number: point.run for number, point in enumerate(points) if point.run is not None}
    settings = varied_settings([run.config for run in runs.values()])
    shared_s = condition_s(runs.values())
    quality = {number: run.quality() for number, run in runs.items()}
    costs = {number: run.cost(shared_s) for number, run in runs.items()}
    baselines = references([run.config for run in runs.values()])
    reference_of = {
        number: None if place is None else list(runs)[place] for number, place in zip(runs, baselines, strict=True)
    }
    distances = {number: _distances(points[number]) for number in runs}
    metric = quality_metric((run.config for run in runs.values()), _common(quality, distances))
    labels = dict(zip(runs, settings, strict=True))
    own = _own_distances(runs, reference_of, distances, metric)
    distances = {number: means | own.get(number, {}) for number, means in distances.items()}
    candidates = [
        Candidate(
            number, label(labels[number]), mean, costs[number].device_s_per_image, _values(points[number], metric)
        )
        for number in runs
        if metric and (mean := (quality[number] | distances[number]).get(metric))
    ]
    groups = _by_reference(candidates, reference_of) if own else None
    config = next((run.config for run in runs.values()), None)
    within = tolerance(config, metric) if config and metric else None
    front = {number for group in groups.values() for number in pareto(group, metric)} if groups else None
    return {
        "judged_by": metric,
        "tolerance": within,
        "answer": _answer(candidates, groups, metric, within),
        "points": [
            _point(number, labels, quality, distances, costs, reference_of, front or pareto(candidates, metric))
            for number in range(len(points))
        ],
        "comparisons": [
            {"point": number, "baseline": baseline, **comparison}
            for number, baseline in reference_of.items()
            if baseline is not None
            for comparison in [compare(runs[number], runs[baseline], metric)]
            if comparison is not None
        ],
    }


def _answer(
    candidates: Sequence[Candidate],
    groups: Mapping[int, Sequence[Candidate]] | None,
    metric: str | None,
    within: float | None,
) -> dict[str, Any] | None:
    if metric is None or within is None:
        return None
    if groups is not None:
        return decide_without_truths(groups, info(metric), within)
    return decide(candidates, info(metric), within)


def _own_distances(
    runs: Mapping[int, RunView],
    reference_of: Mapping[int, int | None],
    distances: Mapping[int, Mapping[str, Mean]],
    metric: str | None,
) -> dict[int, dict[str, Mean]]:
    """If points are judged by their distance from a reference, the distance of each reference from itself.

    The reference takes part with it: it has the quality of identical images, and its own cost.
    """
    if metric is None or (identical := info(metric).identical) is None:
        return {}
    numbers = {reference_of[number] for number, means in distances.items() if metric in means} - {None}
    return {
        number: {metric: Mean(identical, identical, identical, run.num_images)}
        for number, run in runs.items()
        if number in numbers
    }


def _by_reference(
    candidates: Sequence[Candidate], reference_of: Mapping[int, int | None]
) -> dict[int, list[Candidate]]:
    """The candidates that can be compared, by the number of their reference, which is one of them."""
    groups: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        reference = reference_of[candidate.number]
        groups.setdefault(candidate.number if reference is None else reference, []).append(candidate)
    return groups


def _point(
    number: int,
    labels: Mapping[int, Mapping[str, Any]],
    quality: Mapping[int, Mapping[str, Mean]],
    distances: Mapping[int, Mapping[str, Mean]],
    costs: Mapping[int, Cost],
    reference_of: Mapping[int, int | None],
    front: set[int],
) -> dict[str, Any]:
    there = number in labels
    return {
        "settings": dict(labels.get(number, {})),
        "quality": {name: mean.to_json() for name, mean in quality.get(number, {}).items()},
        "distance": {name: mean.to_json() for name, mean in distances.get(number, {}).items()},
        "reference": reference_of.get(number),
        "cost": costs[number].to_json() if there else None,
        "is_pareto": number in front,
    }


def _distances(point: PointView) -> dict[str, Mean]:
    assert point.run is not None
    means = {}
    for name in dict.fromkeys(name for values in point.distances.values() for name in values):
        found = _distance_values(point, name)
        if found:
            means[name] = mean_of(list(found.values()), [sample for sample, _, _ in found], info(name).is_flag)
    return means


def _distance_values(point: PointView, metric: str) -> dict[PairKey, float]:
    assert point.run is not None
    return {
        pair: value
        for pair, key in point.run.keys().items()
        if (value := point.distances.get(key, {}).get(metric)) is not None
    }


def _values(point: PointView, metric: str) -> dict[PairKey, float]:
    """Scores or distances by image. A reference has no distances: its images are identical with themselves."""
    assert point.run is not None
    found = point.run.values(metric) or _distance_values(point, metric)
    identical = info(metric).identical
    return dict.fromkeys(point.run.keys(), identical) if not found and identical is not None else found


def _common(quality: Mapping[int, Mapping[str, Mean]], distances: Mapping[int, Mapping[str, Mean]]) -> list[str]:
    """Metrics that every point with images has, and distances, which references do not have."""
    there = [set(means) for means in quality.values() if means]
    common = set.intersection(*there) if there else set()
    return [*common, *(name for means in distances.values() for name in means)]
