"""A run's images with their scores and cost, from the run's reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fluxexp.compare.statistics import Mean, mean_of
from fluxexp.config import RunConfig
from fluxexp.metrics.catalog import default_quality_metric, info
from fluxexp.plan import Plan
from fluxexp.records import Record

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


@dataclass(frozen=True, slots=True)
class RunView:
    """What a comparison needs of a run."""

    plan: Plan
    records: Mapping[str, Record]
    """Records of the images that exist, by task key."""
    scores: Mapping[str, Mapping[str, float | None]]
    """By task key and metric."""
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, plan: Plan, summary: Mapping[str, Any] | None = None) -> RunView:
        """The run of `plan`. `summary` is the content of summary.json; None reads the file."""
        reader = plan.directory.reader
        if summary is None:
            summary = reader.lenient().summary() or {}  # only for energy, so damage must not end a comparison
        return cls(plan, plan.finished(), reader.scores(), summary)

    @property
    def config(self) -> RunConfig:
        """Config of the run."""
        return self.plan.config

    def values(self, metric: str) -> dict[PairKey, float]:
        """Scores of a metric, for the images that have one."""
        found = {}
        for key, record in self.records.items():
            value = self.scores.get(key, {}).get(metric)
            if value is not None:
                found[record.sample_key, record.variant, record.seed] = value
        return found

    def keys(self) -> dict[PairKey, str]:
        """Task keys of all images."""
        return {(r.sample_key, r.variant, r.seed): key for key, r in self.records.items()}

    def quality(self) -> dict[str, Mean]:
        """Mean of each metric that at least one image has."""
        names = dict.fromkeys(name for key in self.records for name in self.scores.get(key, ()))
        sets, num = self.plan.directory.reader.set_scores()
        means = {name: Mean(value, None, None, num) for name, value in sets.items()}
        for name in names:
            values = self.values(name)
            if values:
                means[name] = mean_of(list(values.values()), [sample for sample, _, _ in values])
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
        if not self.records:
            return None
        if condition_s_per_sample is None:
            condition_s_per_sample = condition_s([self])
        num_samples = len({record.sample_key for record in self.records.values()})
        made_s = sum(record.seconds.get(stage, 0.0) for record in self.records.values() for stage in _OWN_STAGES)
        return (made_s + condition_s_per_sample * num_samples) / len(self.records)


_OWN_STAGES = ("denoise", "decode")


def condition_s(runs: Iterable[RunView]) -> float:
    """Seconds of conditioning per sample, over runs that shared it."""
    records = [record for run in runs for record in run.records.values()]
    num_samples = len({record.sample_key for record in records})
    return sum(record.seconds.get("condition", 0.0) for record in records) / num_samples if num_samples else 0.0


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
