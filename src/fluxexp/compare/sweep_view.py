"""Compares the points of a sweep: quality, cost, difference from the reference, and which point is good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from fluxexp.compare.cost import Cost, costs_of
from fluxexp.compare.cost_warnings import cost_warnings
from fluxexp.compare.decision import decide, decide_without_truths, pareto
from fluxexp.compare.pairs import compare
from fluxexp.compare.run_view import PairKey, RunView, quality_metric, tolerance
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
    measured = _Measured.of(points)
    runs, metric = measured.runs, measured.metric
    candidates = measured.candidates(points)
    groups = _by_reference(candidates, measured.reference_of) if measured.has_own_distances else None
    config = next((run.config for run in runs.values()), None)
    within = tolerance(config, metric) if config and metric else None
    fronts = groups.values() if groups else [candidates]
    front = {number for group in fronts for number in pareto(group, metric)}
    return {
        "judged_by": metric,
        "tolerance": within,
        "answer": _answer(candidates, groups, metric, within),
        "warnings": cost_warnings(list(runs.values()), list(measured.costs.values())),
        "points": [measured.point(number, is_pareto=number in front) for number in range(len(points))],
        "comparisons": measured.comparisons(),
    }


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of each point that has a run, by the number of the point."""

    runs: Mapping[int, RunView]
    labels: Mapping[int, Mapping[str, Any]]
    """The settings that vary."""
    quality: Mapping[int, dict[str, Mean]]
    distances: Mapping[int, dict[str, Mean]]
    costs: Mapping[int, Cost]
    reference_of: Mapping[int, int | None]
    metric: str | None
    """Judges the points."""
    has_own_distances: bool
    """Whether the points are judged by their distance from a reference."""

    @classmethod
    def of(cls, points: Sequence[PointView]) -> Self:
        runs = {number: point.run for number, point in enumerate(points) if point.run is not None}
        configs = [run.config for run in runs.values()]
        places = dict(zip(runs, references(configs), strict=True))
        reference_of = {number: None if place is None else list(runs)[place] for number, place in places.items()}
        quality = {number: run.quality() for number, run in runs.items()}
        distances = {number: _distances(points[number]) for number in runs}
        metric = quality_metric(configs, _common(quality, distances))
        own = _own_distances(runs, reference_of, distances, metric)
        return cls(
            runs=runs,
            labels=dict(zip(runs, varied_settings(configs), strict=True)),
            quality=quality,
            distances={number: means | own.get(number, {}) for number, means in distances.items()},
            costs=dict(zip(runs, costs_of(list(runs.values())), strict=True)),
            reference_of=reference_of,
            metric=metric,
            has_own_distances=bool(own),
        )

    def candidates(self, points: Sequence[PointView]) -> list[Candidate]:
        """The points that have the metric."""
        return [
            _candidate(number, label(self.labels[number]), mean, self.costs[number], _values(points[number], metric))
            for number in self.runs
            if (metric := self.metric) and (mean := (self.quality[number] | self.distances[number]).get(metric))
        ]

    def point(self, number: int, *, is_pareto: bool) -> dict[str, Any]:
        """What sweep.json has of a point, also of one without a run."""
        return {
            "settings": dict(self.labels.get(number, {})),
            "quality": {name: mean.to_json() for name, mean in self.quality.get(number, {}).items()},
            "distance": {name: mean.to_json() for name, mean in self.distances.get(number, {}).items()},
            "reference": self.reference_of.get(number),
            "cost": self.costs[number].to_json() if number in self.costs else None,
            "is_pareto": is_pareto,
        }

    def comparisons(self) -> list[dict[str, Any]]:
        """The paired differences of the points and their references."""
        return [
            {"point": number, "baseline": baseline, **comparison}
            for number, baseline in self.reference_of.items()
            if baseline is not None
            for comparison in [compare(self.runs[number], self.runs[baseline], self.metric)]
            if comparison is not None
        ]


def _candidate(number: int, name: str, quality: Mean, cost: Cost, values: Mapping[PairKey, float]) -> Candidate:
    return Candidate(number, name, quality, cost.device_s_per_image, values, cost.device_s_low, cost.device_s_high)


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
