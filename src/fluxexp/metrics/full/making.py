"""The networks that a config asks for, each loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxexp.metrics.case import Metric, PairMetric
from fluxexp.metrics.full.clip import Clip, ClipScores, Preference
from fluxexp.metrics.full.perceptual import ToReference, make_dists, make_lpips
from fluxexp.metrics.full.sets import ClipFeatures, Extractor, InceptionFeatures


@dataclass(frozen=True, slots=True)
class Full:
    """What scores by networks."""

    metrics: Sequence[Metric]
    pair_metrics: Sequence[PairMetric]
    extractors: Sequence[Extractor]


def make_full(use: Sequence[str], weights: Mapping[str, Path | None], device: Any) -> Full:
    """The metrics named in `use`, whose `weights` are all there, on `device`."""
    paths = {key: path for key, path in weights.items() if path is not None}
    metrics: list[Metric] = []
    pairs: list[PairMetric] = []
    extractors: list[Extractor] = []
    if "lpips" in use:
        lpips = make_lpips(paths["alexnet"], device)
        metrics.append(lpips)
        pairs.append(ToReference("lpips_to_reference", lpips))
    if "dists" in use:
        metrics.append(make_dists(paths["vgg16"], device))
    if {"clip_score", "clip_iqa", "aesthetic", "cmmd"} & set(use):
        clip = Clip(paths["clip"], device)
        scores = ClipScores(clip, use, paths.get("aesthetic"))
        metrics += [scores] if scores.names else []
        extractors += [ClipFeatures(clip)] if "cmmd" in use else []
    metrics += [Preference(name, paths[name], device) for name in ("pick_score", "hps") if name in use]
    if inception := [name for name in ("fid", "kid") if name in use]:
        extractors.append(InceptionFeatures(paths["inception"], inception, device))
    return Full(metrics, pairs, extractors)
