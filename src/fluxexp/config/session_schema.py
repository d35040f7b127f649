"""Schema of how a session works and reports: the config groups parallelism, failures, metrics, cost, report, tracking,
output and debug."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fluxexp.config.rules import Above, Range
from fluxexp.config.schema_types import Count, Name

ParallelismMode = Literal["auto", "data", "context", "single"]
ContextKind = Literal["ulysses", "ring"]
WorkSchedule = Literal["steal", "static"]
NetworkMetric = Literal[
    "lpips", "dists", "clip_score", "clip_iqa", "aesthetic", "pick_score", "hps", "fid", "kid", "cmmd"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelismConfig:
    """How the ranks divide the work."""

    mode: ParallelismMode
    """auto: as many ranks as the images keep busy; if GPUs would be idle, several ranks make an image together. data:
    all ranks, each with its own images. context: all ranks, in replicas that make an image together. single: one
    rank."""
    context_size: Count | None
    """Number of ranks that make an image together. In mode context it must divide the number of ranks. null: all ranks
    in mode context; the number with the least estimated time in mode auto. If mode auto cannot use the number, the plan
    of the session says why. Not allowed in the other modes."""
    context_kind: ContextKind
    """How the ranks of a replica compute attention. ulysses: each rank computes some of the heads. ring: each rank
    keeps its queries, and keys and values rotate through the ranks."""
    schedule: WorkSchedule
    """static: each rank works on its own shard only (Accelerate's `split_between_processes`). steal: in addition, a
    rank that has finished its shard takes tasks from the slowest rank."""
    device: Literal["auto", "cuda", "cpu"]
    """auto: the GPUs if there are any, else the CPU."""
    cpu_threads: Count
    """Number of threads of each rank on a CPU. Rounding depends on it, and launchers set it by the number of ranks.
    With a fixed value, results do not depend on the number of ranks."""
    expect_world_size: Count | None
    """The number of processes that must have been started; any other number is an error. null: any number."""
    join_timeout_s: Annotated[float, Above(0)]
    """Seconds that ranks wait for each other at the start. Then rank 0 starts without those that are absent, and the
    others end if rank 0 is absent. Rank 0 may download a model before it joins."""
    lost_after_s: Annotated[float, Above(0)] | None
    """Seconds without a heartbeat after which a rank is lost, and other ranks do its work. null: never."""
    hung_after_s: Annotated[float, Above(0)] | None
    """Seconds without progress after which a rank hangs: it ends, and other ranks do its work. It must be longer than
    loading a model, compiling it, or one batch takes. null: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresConfig:
    """What happens to tasks that fail, or that end the process that works on them."""

    retries: Annotated[int, Range(0)] | None
    """Number of later sessions that try a failed task again. 0: a failed task is never tried again. null: every session
    tries the failed tasks again."""
    max_failure_rate: Annotated[float, Range(0, 1)] | None
    """The session stops (exit code 4) if more than this fraction of the tasks that it has tried failed, on all ranks
    together. It is judged from 20 tasks on. null: failed tasks never stop a session."""
    max_process_deaths: Annotated[int, Range(2)] | None
    """Number of processes that may die while they work on a task. Then the task is quarantined: it counts as failed,
    and no session tries it again until this number is raised. null: no task is quarantined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMetricsConfig:
    """Results are not scored."""

    name: Literal["none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicMetricsConfig:
    """Scores that need no network."""

    name: Literal["basic"]
    quality: Name | None
    """The quality metric, which judges points. null: the first available one of the list in docs/metrics.md."""
    tolerance: Annotated[float, Range(0)] | None
    """How much worse than the best mean the mean of a cheaper point may be, in the unit of the quality metric.
    null: the tolerance in the metric's catalog entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricWeightsConfig:
    """Where the networks of `metrics=full` are. null: not available, so metrics that need the network cannot be
    used."""

    alexnet: str | None
    """Of LPIPS: a file with a state dict, or `download`."""
    vgg16: str | None
    """Of DISTS: a file with a state dict, or `download`."""
    inception: str | None
    """Of FID and KID: a file with a state dict, or `download`."""
    clip: str | None
    """A directory in the layout of transformers, or a hub id (`org/name`)."""
    aesthetic: str | None
    """Linear layers on the CLIP embedding: a file, or a file of a hub (`org/name:file`)."""
    pick_score: str | None
    """A CLIP directory in the layout of transformers, or a hub id."""
    hps: str | None
    """A CLIP directory in the layout of transformers, or a hub id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullMetricsConfig:
    """The basic scores, and scores that networks compute."""

    name: Literal["full"]
    quality: Name | None
    """See `BasicMetricsConfig`."""
    tolerance: Annotated[float, Range(0)] | None
    """See `BasicMetricsConfig`."""
    use: list[NetworkMetric]
    """The metrics that networks compute (docs/metrics.md)."""
    skip_missing: bool
    """false: a metric without its weights is an error. true: the metric is left out, and the summary says so."""
    weights: MetricWeightsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig:
    """Prices, for summaries and reports."""

    usd_per_gpu_hour: Annotated[float, Range(0)] | None
    """US dollars for an hour of one GPU. null: unknown, so no prices are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """The HTML report."""

    html: bool
    """Whether to write report.html at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] | None
    """null: `WANDB_MODE` or W&B's settings decide; if they say nothing, online with W&B credentials, else offline."""
    project: Name | None
    """W&B project. null: `WANDB_PROJECT`, else `fluxexp`."""
    entity: str | None
    """User or team. null: `WANDB_ENTITY`, else W&B's default."""
    group: str | None
    """W&B group. null: `WANDB_RUN_GROUP`, else the `name` of the run, or the name of the sweep's directory."""
    tags: list[str]
    """Tags of the W&B run. An empty list: `WANDB_TAGS`."""
    every_s: Annotated[float, Above(0)]
    """Seconds between points of the time series."""
    images: Annotated[int, Range(0, 10_000)]
    """Largest number of rows in the table of sample images. 0: no rows."""
    finish_timeout_s: Annotated[float, Range(0)]
    """Seconds that a run waits at its end for W&B. After that, the W&B process continues alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where results go, and in which format."""

    dir: str | None
    """Parent of run directories. null: outputs/, or multirun/ for a sweep."""
    format: Literal["png", "webp", "jpeg"]
    quality: Annotated[int, Range(1, 100)]
    """Quality of webp and jpeg. 100 is lossless for webp. png does not use it: it is always lossless."""
    paste: bool
    """Scale the result to the sample's own size, and paste its masked region into the sample's image, so that pixels
    outside of the mask stay the same."""
    overwrite: bool
    """Delete earlier results in the run's directory and start again. false: continue the run."""
    shards: bool
    """Write images into tars of many images, in the layout of webdataset, for more than a million images. They are in
    shards/, and fluxexp reads them from there. Needs pyarrow. false: one file (or object) for each image."""
    shard_mib: Annotated[int, Range(1, 65_536)]
    """Size in MiB at which a rank closes a tar and begins the next one. It does so after five minutes, too."""
    retry_s: Annotated[float, Range(0)]
    """Seconds for which a write of results is repeated while the storage has a trouble that may pass: a full disk or
    quota, an I/O error, a file server that does not answer. 0: it fails at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Options to check a command without a run."""

    plan: bool
    """Print the plan, then stop before a model is loaded."""


MetricsConfig = NoMetricsConfig | BasicMetricsConfig | FullMetricsConfig
