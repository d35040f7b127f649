"""Every key a user can set, with its type and what is allowed. The values are in `conf/`, never here.

Shapes: sizes are pixels, times are seconds. A key that changes pixels is listed in `fingerprint.py`, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fluxexp.config.families import LAYOUT_NAMES, PIPELINE_FAMILIES
from fluxexp.config.rules import Above, Matches, MultipleOf, OneOf, Range

SIZE_MULTIPLE = 16
"""FLUX packs 2 x 2 latents of 8 x 8 pixels into a token, so a working size is a multiple of 16."""

PixelCount = Annotated[int, Range(16, 8192), MultipleOf(SIZE_MULTIPLE)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Count = Annotated[int, Range(1)]
Name = Annotated[str, Matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, '.', '_' or '-'")]

MaskKind = Literal["box", "center", "strokes", "outpaint"]
MaskChoice = Literal["box", "center", "strokes", "outpaint", "none"]
"""A kind of mask to draw where a sample has none; none: samples have no mask, for families that take none."""
PlacementMode = Literal["fit", "crop", "pad"]
ParallelismMode = Literal["auto", "data", "context", "single"]
ContextKind = Literal["ulysses", "ring"]
NetworkMetric = Literal[
    "lpips", "dists", "clip_score", "clip_iqa", "aesthetic", "pick_score", "hps", "fid", "kid", "cmmd"
]
DType = Literal["float32", "bfloat16", "float16"]
Switch = bool | Literal["auto"]
"""auto: rank 0 chooses by its device, GPU or CPU (`optimizations.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxModelConfig:
    """A FLUX pipeline in the diffusers layout."""

    family: Annotated[str, OneOf(PIPELINE_FAMILIES)]
    """An entry of `families.py`."""
    name: Name
    path: str
    """A directory, a hub id (`org/name`), or `embedded:NAME` for a model that comes with fluxexp."""
    revision: str | None
    """Git revision of a hub id."""
    weights: Literal["pretrained", "random"]
    """random: of `layout`, made on the device without a download, for speed and memory; they paint noise."""
    layout: Annotated[str, OneOf(LAYOUT_NAMES)] | None
    dtype: DType
    resolution: PixelCount
    """Side of the square that the model was made for: the size of samples that have none of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModelConfig:
    """Draws images without a network, at a set speed: for dry runs, tests and balance studies."""

    family: Literal["fake"]
    name: Name
    seconds_per_step: list[Annotated[float, Range(0)]]
    """Of one image on rank 0, 1, ...; the list repeats for further ranks."""
    fail_every: Annotated[int, Range(0)]
    """Every n-th task by its seed fails; 0 for none."""
    broken_rank: Annotated[int, Range(0)] | None
    """On this rank the model cannot be loaded."""
    resolution: PixelCount


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Sampler of the flow ODE. `shift` None keeps the model's own timestep shift."""

    name: Literal[
        "flow_match_euler",
        "flow_match_heun",
        "flow_match_lcm",
        "dpmsolver_multistep",
        "dpmsolver_singlestep",
        "unipc",
        "deis",
    ]
    shift: Annotated[float, Above(0)] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """The point: what is asked of the model for each sample."""

    steps: Annotated[int, Range(1, 1000)]
    guidance: Annotated[float, Range(0, 100)]
    seed: Seed
    height: PixelCount | None
    width: PixelCount | None
    max_pixels: Annotated[int, Range(256)]
    """Where height and width are null, larger samples are worked on at this many pixels."""
    strength: Annotated[float, Above(0), Range(0, 1)]
    max_sequence_length: Annotated[int, Range(1, 512)] | None
    """T5 tokens; null: as many as the model was made for."""
    images_per_sample: Count
    batch_size: Count | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesDatasetConfig:
    """Captioned scenes drawn by the program."""

    kind: Literal["shapes"]
    length: Count
    height: PixelCount
    width: PixelCount
    seed: Seed
    limit: Count | None
    placement: PlacementMode


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderDatasetConfig:
    """Images in a folder."""

    kind: Literal["folder"]
    path: str
    masks: str | None
    """A parallel folder of masks; null looks for NAME_mask.png, NAME.mask.png or NAME-mask.png beside each image."""
    truths: str | None
    prompt: str | None
    """Used where an image has no .txt beside it."""
    alpha_mask: bool
    """Use an image's alpha channel as its mask: transparent pixels are painted."""
    mask: MaskChoice | None
    """Drawn where a sample has none; none: masks are not read, and samples have none."""
    limit: Count | None
    placement: PlacementMode


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDatasetConfig:
    """A .csv, .jsonl or .parquet file with columns prompt, image, mask, and optionally truth, key, size."""

    kind: Literal["table"]
    path: str
    prompt: str | None
    alpha_mask: bool
    mask: MaskChoice | None
    limit: Count | None
    placement: PlacementMode


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsDatasetConfig:
    """Prompts without images: a .txt file with one a line, or a table with a prompt column."""

    kind: Literal["prompts"]
    path: str
    limit: Count | None
    placement: ClassVar[PlacementMode] = "fit"
    """Not a key: there is nothing to place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelismConfig:
    """How work is spread over ranks."""

    mode: ParallelismMode
    """auto: as many ranks as the number of images pays for, several for an image where there are GPUs left over; data:
    all, each with its own images; context: groups of ranks make images together; single: one."""
    context_size: Count | None
    """Ranks that make an image together, where `mode` is context or auto chooses it. null: all for context, as many
    as pay for auto."""
    context_kind: ContextKind
    """ulysses: in attention each rank takes some of the heads; ring: each keeps its queries, and keys and values go
    round."""
    schedule: Literal["steal", "static"]
    """static: contiguous shares by Accelerate's split_between_processes. steal: the same shares, and a rank that is
    done takes over from the slowest."""
    device: Literal["auto", "cuda", "cpu"]
    cpu_threads: Count
    """Of each rank, where it computes on a CPU. Kernels round differently with another number of threads, and launchers
    set it by the number of ranks: fixed here, results do not depend on those."""
    expect_world_size: Count | None
    """Refuse to run on any other number of processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstBlockCacheConfig:
    """The blocks after the first are left out while the first one's residual has hardly changed; image by image."""

    name: Literal["first_block"]
    threshold: Annotated[float, Range(0)]
    """Mean absolute change of the first block's residual since the last full evaluation, relative to its mean
    absolute value; where it is not larger, the other blocks are left out."""
    max_consecutive_skips: Count
    warmup_steps: Count
    """Evaluations at the start that are always full; one at least, as there is nothing to reuse before it."""
    last_steps: Annotated[int, Range(0)]
    """Evaluations at the end that are always full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorSeerCacheConfig:
    """Every `interval`-th evaluation is full; between them what all blocks add is extrapolated."""

    name: Literal["taylorseer"]
    interval: Count
    order: Annotated[int, Range(0, 2)]
    """Of the extrapolation; 0 repeats what was added last."""
    warmup_steps: Count
    last_steps: Annotated[int, Range(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MagCacheConfig:
    """What all blocks add is repeated while the magnitude that it is known to have has hardly changed."""

    name: Literal["magcache"]
    threshold: Annotated[float, Range(0)]
    """Of the error that has accumulated since the last full evaluation, in shares of the magnitude."""
    max_consecutive_skips: Count
    retention_ratio: Annotated[float, Range(0, 1)]
    """Share of the evaluations, at the start, that are always full."""
    last_steps: Annotated[int, Range(0)]
    ratios: list[Annotated[float, Above(0)]] | Literal["measured", "flux_dev"]
    """Magnitude at each evaluation relative to the one before. measured: by `fluxexp.calibrate`, for this model and
    scheduler; flux_dev: those published for FLUX.1-dev. Stretched to the number of steps."""


StepCacheConfig = FirstBlockCacheConfig | TaylorSeerCacheConfig | MagCacheConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationConfig:
    """The value of each optimization, in the order in which they are applied.

    `config/optimization_catalog.py` declares what each one does, its kind and what `auto` means for it. The summary
    says which ones were applied and which were skipped.
    """

    hoist_constants: Switch
    no_matmul_workspace: Switch
    attention_backend: str | None
    modulation_table: Switch
    fused_kernels: Switch
    fp8_linears: Switch
    fp8_attention: Switch
    fused_vae: Switch
    text_encoder_weights: Literal["fp8", "int8"] | None
    offload: Literal["auto", "text_encoders", "model", "group", "sequential"] | None
    onednn_linears: Switch
    compile_blocks: Switch
    cuda_graph: Switch
    compile_vae: Switch
    vae_tiling: Switch
    text_cache: Switch
    step_cache: StepCacheConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMetricsConfig:
    """Results are not scored."""

    name: Literal["none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicMetricsConfig:
    """Scores that need no network's weights."""

    name: Literal["basic"]
    quality: Name | None
    """The metric by which points are judged; null: the first that there is of a list (docs/metrics.md)."""
    tolerance: Annotated[float, Range(0)] | None
    """By how much a cheaper point's mean may be worse than the best's; null: as the metric's catalog entry says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricWeightsConfig:
    """Where the networks of `metrics=full` are: a path, or what a hub knows them by."""

    alexnet: str | None
    vgg16: str | None
    inception: str | None
    clip: str | None
    aesthetic: str | None
    pick_score: str | None
    hps: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FullMetricsConfig:
    """The basic ones, and scores by networks."""

    name: Literal["full"]
    quality: Name | None
    tolerance: Annotated[float, Range(0)] | None
    use: list[NetworkMetric]
    skip_missing: bool
    """Whether metrics without weights are left out and recorded, instead of being an error."""
    weights: MetricWeightsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig:
    """What is known of prices."""

    usd_per_gpu_hour: Annotated[float, Range(0)] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """The HTML report."""

    html: bool
    """Whether to write it at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases."""

    mode: Literal["offline", "online", "disabled"] | None
    """null: online when W&B credentials are there, else offline."""
    project: Name
    entity: str | None
    group: str | None
    tags: list[str]
    every_s: Annotated[float, Above(0)]
    images: Annotated[int, Range(0, 10_000)]
    """Rows of the table of sample images."""
    finish_timeout_s: Annotated[float, Range(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where results go and how they are written."""

    dir: str | None
    """Parent of run directories; null: outputs/, or multirun/ in a sweep."""
    format: Literal["png", "webp", "jpeg"]
    quality: Annotated[int, Range(1, 100)]
    """Of webp and jpeg; 100 is lossless for webp. png ignores nothing: it is always lossless."""
    paste: bool
    """Bring results back to the sample's size with pixels outside the mask untouched."""
    overwrite: bool
    """Start afresh instead of continuing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Ways to look before running."""

    plan: bool
    """Print what would be done, then stop before a model is loaded."""


ModelConfig = FluxModelConfig | FakeModelConfig
MetricsConfig = NoMetricsConfig | BasicMetricsConfig | FullMetricsConfig
DatasetConfig = ShapesDatasetConfig | FolderDatasetConfig | TableDatasetConfig | PromptsDatasetConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run, as `conf/config.yaml` composes it."""

    name: Name
    seed: Seed
    model: ModelConfig
    scheduler: SchedulerConfig
    sampling: SamplingConfig
    dataset: DatasetConfig
    parallelism: ParallelismConfig
    optimization: OptimizationConfig
    metrics: MetricsConfig
    cost: CostConfig
    report: ReportConfig
    tracking: TrackingConfig
    output: OutputConfig
    debug: DebugConfig
    objective: Literal["device_s_per_image", "quality"] | None
    """What a sweeper that searches is told of each point."""
