"""The metrics that a config asks for. Metrics with networks are imported only on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fluxexp.config.build import unknown_name
from fluxexp.config.schema import FullMetricsConfig, MetricsConfig, NoMetricsConfig
from fluxexp.errors import ConfigError, Problem
from fluxexp.metrics.basic import BASIC, OutputDistance
from fluxexp.metrics.case import Metric, PairMetric
from fluxexp.metrics.catalog import CATALOG

if TYPE_CHECKING:
    from fluxexp.metrics.full.feature_extractors import Extractor


@dataclass(frozen=True, slots=True)
class MetricSet:
    """Metrics that are ready to score."""

    metrics: Sequence[Metric]
    pair_metrics: Sequence[PairMetric]
    extractors: Sequence[Extractor] = ()
    """Feature extractors, for distances between sets of images."""
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Requested metrics that are not available, with the reason (`metrics.skip_missing`)."""


def make_metrics(config: MetricsConfig, device: Any) -> MetricSet:
    """Create the metrics that `config` asks for, with networks on `device`.

    Raises:
        ConfigError: weights are missing, and `metrics.skip_missing` is not set.
    """
    if isinstance(config, NoMetricsConfig):
        return MetricSet((), ())
    metrics: list[Metric] = [metric() for metric in BASIC]
    if not isinstance(config, FullMetricsConfig):
        return MetricSet(metrics, [OutputDistance()])
    from fluxexp.metrics.full.metric_weights import find_weights
    from fluxexp.metrics.full.network_metrics import make_network_metrics

    found = find_weights(config)
    if found.missing and not config.skip_missing:
        raise ConfigError(list(found.missing.values()))
    full = make_network_metrics([name for name in config.use if name not in found.missing], found.weights, device)
    omitted = {name: f"{problem.key}={problem.value}: {problem.reason}" for name, problem in found.missing.items()}
    return MetricSet([*metrics, *full.metrics], [OutputDistance(), *full.pair_metrics], full.extractors, omitted)


def require_metrics(config: MetricsConfig) -> None:
    """Check that all metrics in `config` are available, before a run makes images.

    Raises:
        ConfigError: `metrics.quality` is not a metric or has no better direction, or weights are missing and
            `metrics.skip_missing` is not set.
    """
    quality = getattr(config, "quality", None)
    if quality is not None and quality not in CATALOG:
        hint = unknown_name(quality, CATALOG, "metrics")
        raise ConfigError(Problem("metrics.quality", "is not a metric", quality, hint))
    if quality is not None and CATALOG[quality].higher_is_better is None:
        directed = ", ".join(name for name, metric in CATALOG.items() if metric.higher_is_better is not None)
        reason = "does not measure quality: neither direction is better"
        raise ConfigError(Problem("metrics.quality", reason, quality, f"metrics: {directed}"))
    if isinstance(config, FullMetricsConfig):
        from fluxexp.metrics.full.metric_weights import find_weights

        found = find_weights(config)
        if found.missing and not config.skip_missing:
            raise ConfigError(list(found.missing.values()))
