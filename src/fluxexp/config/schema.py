"""The config of a run: every key that a user can set, with its type and its range. The default values are in `conf/`.

The groups are declared in `generation_schema.py`, `dataset_schema.py`, `optimization_schema.py`, `session_schema.py`
and others. Other code imports all names from here. Sizes are in pixels and times in seconds. A key that changes pixels
is listed in `fingerprint.py`, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fluxexp.config.dataset_schema import (
    DatasetConfig,
    FolderDatasetConfig,
    HubColumnsConfig,
    HubDatasetConfig,
    ImagesDatasetConfig,
    MaskChoice,
    MaskKind,
    PlacementMode,
    PromptsDatasetConfig,
    ShapesDatasetConfig,
    TableDatasetConfig,
    WebDatasetConfig,
    WebDatasetMembersConfig,
)
from fluxexp.config.engine_schema import EngineConfig, LocalEngineConfig, RayEngineConfig
from fluxexp.config.generation_schema import (
    NO_FILES,
    ControlNetConfig,
    DType,
    FakeModelConfig,
    FluxModelConfig,
    ModelConfig,
    ModelFilesConfig,
    SamplingConfig,
    SchedulerConfig,
)
from fluxexp.config.lora_schema import LoraConfig
from fluxexp.config.optimization_schema import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    OptimizationConfig,
    StepCacheConfig,
    Switch,
    TaylorSeerCacheConfig,
)
from fluxexp.config.picture_schema import IpAdapterConfig, ReduxConfig
from fluxexp.config.schema_types import SIZE_MULTIPLE, Count, Name, PixelCount, Seed
from fluxexp.config.session_schema import (
    BasicMetricsConfig,
    ContextKind,
    CostConfig,
    DebugConfig,
    FailuresConfig,
    FullMetricsConfig,
    MetricsConfig,
    MetricWeightsConfig,
    NetworkMetric,
    NoMetricsConfig,
    OutputConfig,
    ParallelismConfig,
    ParallelismMode,
    ReportConfig,
    TrackingConfig,
    WorkSchedule,
)

__all__ = [
    "NO_FILES",
    "SIZE_MULTIPLE",
    "BasicMetricsConfig",
    "ContextKind",
    "ControlNetConfig",
    "CostConfig",
    "Count",
    "DType",
    "DatasetConfig",
    "DebugConfig",
    "EngineConfig",
    "FailuresConfig",
    "FakeModelConfig",
    "FirstBlockCacheConfig",
    "FluxModelConfig",
    "FolderDatasetConfig",
    "FullMetricsConfig",
    "HubColumnsConfig",
    "HubDatasetConfig",
    "ImagesDatasetConfig",
    "IpAdapterConfig",
    "LocalEngineConfig",
    "LoraConfig",
    "MagCacheConfig",
    "MaskChoice",
    "MaskKind",
    "MetricWeightsConfig",
    "MetricsConfig",
    "ModelConfig",
    "ModelFilesConfig",
    "Name",
    "NetworkMetric",
    "NoMetricsConfig",
    "OptimizationConfig",
    "OutputConfig",
    "ParallelismConfig",
    "ParallelismMode",
    "PixelCount",
    "PlacementMode",
    "PromptsDatasetConfig",
    "RayEngineConfig",
    "ReduxConfig",
    "ReportConfig",
    "RunConfig",
    "SamplingConfig",
    "SchedulerConfig",
    "Seed",
    "ShapesDatasetConfig",
    "StepCacheConfig",
    "Switch",
    "TableDatasetConfig",
    "TaylorSeerCacheConfig",
    "TrackingConfig",
    "WebDatasetConfig",
    "WebDatasetMembersConfig",
    "WorkSchedule",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run, as `conf/config.yaml` composes it."""

    name: Name
    """First part of the name of the run's directory."""
    seed: Seed
    """Seed of the whole run. In `conf/`, `sampling.seed` takes its value."""
    model: ModelConfig
    lora: LoraConfig
    redux: ReduxConfig
    ip_adapter: IpAdapterConfig
    scheduler: SchedulerConfig
    sampling: SamplingConfig
    dataset: DatasetConfig
    engine: EngineConfig
    parallelism: ParallelismConfig
    failures: FailuresConfig
    optimization: OptimizationConfig
    metrics: MetricsConfig
    cost: CostConfig
    report: ReportConfig
    tracking: TrackingConfig
    output: OutputConfig
    debug: DebugConfig
    objective: Literal["device_s_per_image", "quality"] | None
    """The value that a search (`hydra/sweeper=optuna`) optimizes. null: none, so a search is refused."""
