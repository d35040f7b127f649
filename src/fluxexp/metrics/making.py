"""The metrics that a config asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxexp.config.build import unknown_name
from fluxexp.config.schema import Metrics, NoMetrics
from fluxexp.errors import ConfigError, Problem
from fluxexp.metrics.basic import BASIC, OutputDistance
from fluxexp.metrics.case import Metric, PairMetric
from fluxexp.metrics.catalog import CATALOG


@dataclass(frozen=True, slots=True)
class Made:
    """Metrics, ready to score."""

    metrics: Sequence[Metric]
    pair_metrics: Sequence[PairMetric]
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Metrics that were asked for and are not there, with the reason (`metrics.skip_missing`)."""


def make_metrics(config: Metrics, device: Any) -> Made:
    """What `config` asks for, networks on `device`."""
    if isinstance(config, NoMetrics):
        return Made((), ())
    return Made([metric() for metric in BASIC], [OutputDistance()])


def require_metrics(config: Metrics) -> None:
    """Raise ConfigError for what `config` asks for and cannot be had; before anything is made."""
    quality = getattr(config, "quality", None)
    if quality is not None and quality not in CATALOG:
        raise ConfigError(
            Problem("metrics.quality", "is no metric", quality, unknown_name(quality, CATALOG, "metrics"))
        )
