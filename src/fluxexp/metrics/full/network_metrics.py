"""Loads the networks of the requested metrics. All metrics that use `metrics.weights.clip` share one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxexp.metrics.case import Metric, PairMetric
from fluxexp.metrics.full.clip import Aesthetic, Clip, ClipIqa, ClipScore, Preference
from fluxexp.metrics.full.feature_extractors import ClipFeatures, Extractor, InceptionFeatures
from fluxexp.metrics.full.perceptual import ReferenceDistance, make_dists, make_lpips


@dataclass(frozen=True, slots=True)
class NetworkMetrics:
    """All metrics that use networks."""

    metrics: Sequence[Metric]
    pair_metrics: Sequence[PairMetric]
    extractors: Sequence[Extractor]


def make_network_metrics(use: Sequence[str], weights: Mapping[str, Path], device: Any) -> NetworkMetrics:
    """Create the metrics `use` on `device`. `weights` contains all weights that they need."""
    metrics: list[Metric] = []
    pairs: list[PairMetric] = []
    extractors: list[Extractor] = []
    if "lpips" in use:
        lpips = make_lpips(weights["alexnet"], device)
        metrics.append(lpips)
        pairs.append(ReferenceDistance("lpips_to_reference", lpips))
    if "dists" in use:
        metrics.append(make_dists(weights["vgg16"], device))
    if {"clip_score", "clip_iqa", "aesthetic", "cmmd"} & set(use):
        clip = Clip(weights["clip"], device)
        metrics += _of_clip(clip, use, weights)
        extractors += [ClipFeatures(clip)] if "cmmd" in use else []
    metrics += [Preference(name, Clip(weights[name], device)) for name in ("pick_score", "hps") if name in use]
    if inception := [name for name in ("fid", "kid") if name in use]:
        extractors.append(InceptionFeatures(weights["inception"], inception, device))
    return NetworkMetrics(metrics, pairs, extractors)


def _of_clip(clip: Clip, use: Sequence[str], weights: Mapping[str, Path]) -> list[Metric]:
    """One metric per score. So each has its own identity, and a change of other weights does not outdate its scores."""
    metrics: list[Metric] = []
    if "clip_score" in use:
        metrics.append(ClipScore(clip))
    if "clip_iqa" in use:
        metrics.append(ClipIqa(clip))
    if "aesthetic" in use:
        metrics.append(Aesthetic(clip, weights["aesthetic"]))
    return metrics
