"""The values of one metric over the pairs of two runs: scores of both, or distances between the two images."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from fluxexp.arrays import ImageArray
from fluxexp.compare.run_view import RunView
from fluxexp.config.schema import FullMetricsConfig, MetricWeightsConfig
from fluxexp.errors import ComparisonError, SampleError
from fluxexp.gate.run_pairs import RunPairs, TaskPair
from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.metrics.basic import BASIC, OutputDistance
from fluxexp.metrics.case import PairMetric, make_case
from fluxexp.records import Sample, Task
from fluxexp.storage.result_files import image_key
from fluxexp.transparency import over_white

DISTANCES = ("psnr_to_reference", "ssim_to_reference", "lpips_to_reference")
"""The metrics that need the pixels of both runs."""
_LPIPS = "lpips_to_reference"
_MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class PairValues:
    """One value for each pair."""

    pairs: Sequence[TaskPair]
    candidate: Sequence[float]
    """Scores of the candidate, or distances between the two images."""
    reference: Sequence[float] | None
    """Scores of the reference; None for distances."""


def scores_of(runs: RunPairs, metric: str) -> PairValues:
    """The scores of both runs, without the pairs to which the metric does not apply.

    Raises:
        ComparisonError: an image of one run is not scored.
    """
    found = []
    unscored = {id(runs.candidate): 0, id(runs.reference): 0}
    for pair in runs.pairs:
        sides = (runs.candidate, pair.candidate.key), (runs.reference, pair.reference.key)
        values = [run.scores.get(key, {}).get(metric) for run, key in sides]
        if values[0] is not None and values[1] is not None:
            found.append((pair, values[0], values[1]))
            continue
        for (run, key), value, other in zip(sides, values, values[::-1], strict=True):
            unscored[id(run)] += metric not in run.scores.get(key, {}) or (value is None and other is not None)
    for run in (runs.candidate, runs.reference):
        if number := unscored[id(run)]:
            raise ComparisonError(_unscored(run, metric, number, len(runs.pairs)))
    if not found:
        raise ComparisonError(f"{metric} applies to no image of these runs (docs/metrics.md says what it needs)")
    pairs, ours, theirs = zip(*found, strict=True)
    return PairValues(pairs, ours, theirs)


def distances_of(runs: RunPairs, metric: str, lpips_weights: str | None) -> PairValues:
    """The distances between the two images of each pair.

    Args:
        runs: the two runs.
        metric: one of `DISTANCES`.
        lpips_weights: file with the state dict of LPIPS' AlexNet, or `download`; None: as the runs say.

    Raises:
        ComparisonError: an image or a sample cannot be read, images of a pair have different sizes, or the weights of
            LPIPS are missing.
    """
    measure = _pair_metric(runs, metric, lpips_weights)

    def distance(pair: TaskPair) -> float | None:
        case = make_case(_image(runs.candidate, pair.candidate), _sample(runs, pair), runs.candidate.config)
        other = _pixels(runs.reference, pair.reference)
        if case.result.shape != other.shape:
            sizes = [f"{shape[1]} x {shape[0]}" for shape in (case.result.shape, other.shape)]
            raise ComparisonError(
                f"the images of sample {pair.key[0]} have {sizes[0]} and {sizes[1]} pixels. {metric} needs equal sizes"
            )
        return measure.measure(case, other)[metric]

    threads = max(1, min(_MOST_THREADS, len(os.sched_getaffinity(0))))
    with ThreadPoolExecutor(threads, thread_name_prefix="gate") as pool:
        values = list(pool.map(distance, runs.pairs))
    known = [(pair, value) for pair, value in zip(runs.pairs, values, strict=True) if value is not None]
    if not known:
        raise ComparisonError(f"{metric} applies to no image of these runs (docs/metrics.md says what it needs)")
    pairs, found = zip(*known, strict=True)
    return PairValues(pairs, found, None)


def is_identical(runs: RunPairs) -> bool:
    """Whether the images of all pairs have the same pixels. Reads them until two differ."""
    for pair in runs.pairs:
        if _file(runs.candidate, pair.candidate) != _file(runs.reference, pair.reference):
            ours, theirs = _pixels(runs.candidate, pair.candidate), _pixels(runs.reference, pair.reference)
            if not np.array_equal(ours, theirs):
                return False
    return True


def result_file(run: RunView, task: Task) -> str:
    """The image of a task, relative to the directory of its run."""
    return image_key(task.key, run.config.output.format)


def _unscored(run: RunView, metric: str, number: int, num_pairs: int) -> str:
    address = run.plan.directory.address
    how = "metrics=basic" if metric in _basic_names() else f"metrics=full 'metrics.use=[{metric}]'"
    return (
        f"{number} of {num_pairs} images in {address} have no score {metric}. "
        f"Run: python -m fluxexp.score {address} {how}"
    )


@cache
def _basic_names() -> frozenset[str]:
    return frozenset(name for metric in BASIC for name in metric().names)


def _pair_metric(runs: RunPairs, metric: str, lpips_weights: str | None) -> PairMetric:
    if metric != _LPIPS:
        return OutputDistance()
    from fluxexp.metrics.full.metric_weights import find_weights

    config = _lpips_config(runs, lpips_weights)
    found = find_weights(config)
    for problem in found.missing.values():
        is_library = problem.key == "metrics.use"
        remedy = "Run pip install 'fluxexp[metrics]'" if is_library else "Give a state dict with --lpips-weights FILE"
        raise ComparisonError(
            f"{metric} is not available: {problem.value} {problem.reason}. {remedy}, or use --metric ssim_to_reference"
        )
    import torch

    from fluxexp.metrics.full.perceptual import ReferenceDistance, make_lpips

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ReferenceDistance(_LPIPS, make_lpips(found.weights["alexnet"], device))


def _lpips_config(runs: RunPairs, weights: str | None) -> FullMetricsConfig:
    configs = [run.config.metrics for run in (runs.candidate, runs.reference)]
    asked = [config.weights.alexnet for config in configs if isinstance(config, FullMetricsConfig)]
    none = MetricWeightsConfig(
        alexnet=None, vgg16=None, inception=None, clip=None, aesthetic=None, pick_score=None, hps=None
    )
    return FullMetricsConfig(
        name="full",
        quality=None,
        tolerance=None,
        use=["lpips"],
        skip_missing=False,
        weights=replace(none, alexnet=weights or next(filter(None, asked), "download")),
    )


def _sample(runs: RunPairs, pair: TaskPair) -> Sample:
    try:
        return runs.candidate.plan.dataset.load(pair.candidate.index)
    except SampleError as error:
        raise ComparisonError(f"sample {pair.key[0]}, whose mask is needed, cannot be read: {error}") from error


def _image(run: RunView, task: Task) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(_file(run, task)), formats=RESULT_FORMATS)
        image.load()
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise ComparisonError(
            f"{run.plan.directory.address / result_file(run, task)} cannot be read: {error}. Run its command again"
        ) from error
    return image


def _pixels(run: RunView, task: Task) -> ImageArray:
    return np.asarray(over_white(_image(run, task)))


def _file(run: RunView, task: Task) -> bytes:
    return run.plan.directory.reader.read_image(result_file(run, task))
