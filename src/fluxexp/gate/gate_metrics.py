"""The metrics that a gate checks: what a user may ask for, and the limit that a tolerance means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxexp.config.build import unknown_name
from fluxexp.errors import ConfigError, Problem
from fluxexp.gate.pair_values import DISTANCES
from fluxexp.metrics.catalog import CATALOG, MetricInfo

SETS = ("fid", "kid", "cmmd")
"""Distances between sets of images, which have no value for a single image."""


@dataclass(frozen=True, slots=True)
class GateMetric:
    """A metric with its tolerance."""

    info: MetricInfo
    tolerance: float

    @property
    def is_distance(self) -> bool:
        """Whether it compares the pixels of both runs, and not their scores."""
        return self.info.name in DISTANCES

    @property
    def higher_is_better(self) -> bool:
        """The direction of the metric."""
        return self.info.higher_is_better is True

    @property
    def limit(self) -> float:
        """The worst value that passes: of the mean difference of scores, or of the mean distance."""
        if self.info.name == "psnr_to_reference":
            return self.tolerance
        if self.info.name == "ssim_to_reference":
            return 1 - self.tolerance
        return 0.0 - self.tolerance if self.higher_is_better else self.tolerance  # 0.0, not -0.0


def gate_metric(name: str, tolerance: float | None) -> GateMetric:
    """The metric `name`. A tolerance of None is that of the catalog.

    Raises:
        ConfigError: a gate cannot check this metric.
    """
    known = CATALOG.get(name)
    if known is None:
        raise ConfigError(Problem("--metric", "is not a metric", name, unknown_name(name, _usable(), "metrics")))
    if name in SETS:
        reason = "compares sets of images, and a gate compares single images"
        raise ConfigError(Problem("--metric", reason, name, f"metrics: {', '.join(_usable())}"))
    if known.higher_is_better is None:
        reason = "does not measure quality: neither direction is better"
        raise ConfigError(Problem("--metric", reason, name, f"metrics: {', '.join(_usable())}"))
    if tolerance is None and name == "psnr_to_reference":
        hint = "--tolerance is the smallest mean PSNR that passes, in dB, for example 35"
        raise ConfigError(Problem("--metric", "has no default tolerance", name, hint))
    return GateMetric(known, known.tolerance if tolerance is None else tolerance)


def _usable() -> Sequence[str]:
    return sorted(name for name, one in CATALOG.items() if name not in SETS and one.higher_is_better is not None)
