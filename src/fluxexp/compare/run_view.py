"""A run's images with their scores and cost, from the run's reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fluxexp.compare.statistics import Mean, mean_of
from fluxexp.config import RunConfig
from fluxexp.metrics.catalog import default_quality_metric, info
from fluxexp.plan import Plan, TaskResults

PairKey = tuple[str, int, int]
"""(sample key, image index, seed). Equal keys mean the same sample and the same noise."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one image of a run: time and energy of one device, and money if the price is known."""

    device_s_per_image: float | None
    """Conditioning, denoising and decoding, without warm-up. Work that points of a sweep share counts for each."""
    images_per_hour_per_device: float | None
    joules_per_image: float | None
    usd_per_image: float | None

    def to_json(self) -> dict[str, float | None]:
        """As `summary.json` has it."""
        return {name: None if value is None else float(f"{value:.6g}") for name, value in asdict(self).items()}


@dataclass(frozen=True)
class RunView:
    """What a comparison needs of a run."""

    plan: Plan
    results: TaskResults
    """Which images exist."""
    scores: Mapping[str, Mapping[str, float | None]]
    """By task key and metric."""
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, plan: Plan, summary: Mapping[str, Any] | None = None) -> RunView:
        """The run of `plan`. `summary` is the content of summary.json; None reads the file."""
        reader = plan.directory.reader
        if summary is None:
            summary = reader.lenient().summary() or {}  # only for energy, so damage must not end a comparison
        return cls(plan, plan.results(), reader.scores(), summary)

    @property
    def config(self) -> RunConfig:
        """Config of the run."""
        return self.plan.config

    @cached_property
    def num_images(self) -> int:
        """Number of images that exist."""
        return int(self.results.is_made.sum())

    @cached_property
    def num_samples(self) -> int:
        """Number of samples that have an image."""
        return len(self._samples())

    def sample_keys(self) -> list[str]:
        """Keys of the samples that have an image."""
        return [self.plan.dataset.key(index) for index in self._samples().tolist()]

    def _samples(self) -> npt.NDArray[np.int64]:
        return np.unique(np.flatnonzero(self.results.is_made) // self.config.sampling.images_per_sample)

    def values(self, metric: str) -> dict[PairKey, float]:
        """Scores of a metric, for the images that have one."""
        found = {}
        for pair, key in self.keys().items() if self.scores else ():
            value = self.scores.get(key, {}).get(metric)
            if value is not None:
                found[pair] = value
        return found

    def keys(self) -> Mapping[PairKey, str]:
        """Task keys of all images."""
        return self._keys

    @cached_property
    def _keys(self) -> dict[PairKey, str]:
        tasks = self.plan.tasks(np.flatnonzero(self.results.is_made).tolist())
        return {(task.sample_key, task.image_index, task.seed): task.key for task in tasks}

    def seconds(self, stage: str) -> float:
        """Sum of the seconds of `condition`, `denoise` or `decode`, over all images."""
        return float(self.results.index.column(f"{stage}_s")[self.results.rows[self.results.is_made]].sum())

    def quality(self) -> dict[str, Mean]:
        """Mean of each metric that at least one image has."""
        keys = self.keys().values() if self.scores else ()
        names = dict.fromkeys(name for key in keys for name in self.scores.get(key, ()))
        sets, num = self.plan.directory.reader.set_scores()
        means = {name: Mean(score.value, score.low, score.high, num) for name, score in sets.items()}
        for name in names:
            values = self.values(name)
            if values:
                means[name] = mean_of(list(values.values()), [sample for sample, _, _ in values], info(name).is_flag)
        return means

    def cost(self, condition_s_per_sample: float | None = None) -> Cost:
        """Cost of one image from the records of all sessions.

        Args:
            condition_s_per_sample: seconds of conditioning per sample if runs share it; None: of this run alone.
        """
        seconds = self._device_s(condition_s_per_sample)
        usd = self.config.cost.usd_per_gpu_hour
        sessions = self.summary.get("sessions") or [self.summary]  # before 0.2, a summary had only the last one
        ranks = [rank for session in sessions for rank in session.get("ranks", ()) if rank.get("energy_j") is not None]
        made = sum(rank.get("num_images", 0) for rank in ranks)
        return Cost(
            device_s_per_image=seconds,
            images_per_hour_per_device=3600 / seconds if seconds else None,
            joules_per_image=sum(rank["energy_j"] for rank in ranks) / made if made else None,
            usd_per_image=None if usd is None or seconds is None else usd * seconds / 3600,
        )

    def _device_s(self, condition_s_per_sample: float | None) -> float | None:
        if not self.num_images:
            return None
        if condition_s_per_sample is None:
            condition_s_per_sample = condition_s([self])
        made_s = sum(map(self.seconds, _OWN_STAGES))
        return (made_s + condition_s_per_sample * self.num_samples) / self.num_images


_OWN_STAGES = ("denoise", "decode")


def condition_s(runs: Iterable[RunView]) -> float:
    """Seconds of conditioning per sample, over runs that shared it."""
    runs = list(runs)
    num_samples = runs[0].num_samples if len(runs) == 1 else len({key for run in runs for key in run.sample_keys()})
    return sum(run.seconds("condition") for run in runs) / num_samples if num_samples else 0.0


def run_figures(run: RunView) -> dict[str, Any]:
    """The part of a run's summary.json about scores and cost (docs/run-directory.md)."""
    means = run.quality()
    return {
        "scores": {name: mean.to_json() for name, mean in means.items()},
        "judged_by": quality_metric([run.config], means),
        "cost": run.cost().to_json(),
    }


def quality_metric(configs: Iterable[RunConfig], available: Iterable[str]) -> str | None:
    """The quality metric: the first one that a config asks for, else the first available one of the catalog."""
    asked = (getattr(config.metrics, "quality", None) for config in configs)
    return next((name for name in asked if name), None) or default_quality_metric(available)


def tolerance(config: RunConfig, metric: str) -> float:
    """How much worse than the best a mean of `metric` can be and still be good enough."""
    asked: float | None = getattr(config.metrics, "tolerance", None)
    return info(metric).tolerance if asked is None else asked
