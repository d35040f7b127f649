"""Schema of what is generated: the config groups model, scheduler and sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from fluxexp.config.families import LAYOUT_NAMES, PIPELINE_FAMILIES
from fluxexp.config.rules import Above, Matches, OneOf, Range
from fluxexp.config.schema_types import Count, Name, PixelCount, Seed

DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFilesConfig:
    """Files that each have one component, in safetensors or GGUF, in the layout of diffusers or another one
    (docs/models.md). null: the component that `path` or `base` has."""

    transformer: str | None
    """The network that denoises."""
    text_encoder: str | None
    """CLIP."""
    text_encoder_2: str | None
    """T5."""
    vae: str | None
    """The network that makes latents of pixels, and pixels of latents."""


NO_FILES = ModelFilesConfig(transformer=None, text_encoder=None, text_encoder_2=None, vae=None)
"""All components are those of `path` or `base`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetConfig:
    """A second network that reads control images: FluxControlNetModel of diffusers."""

    path: str
    """A directory with config.json and weights in the layout of diffusers, or a hub id (`org/name`)."""
    revision: str | None
    """As `model.revision`, of the ControlNet."""
    layout: Literal["plain", "union", "xlabs"] | None
    """Kind of ControlNet with random weights, as wide as the transformer. plain: reads latents of the control image.
    union: also has 10 modes (`sampling.control_mode`). xlabs: reads its pixels. null: only pretrained weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxModelConfig:
    """A FLUX pipeline in the directory layout of diffusers, or in single files."""

    family: Annotated[str, OneOf(PIPELINE_FAMILIES)]
    """Name of an entry of `families.py`."""
    name: Name
    """Name of the model in messages and results."""
    path: str
    """A directory, a hub id (`org/name`), or `embedded:NAME` for a model that comes with fluxexp. With `base`: a file
    (safetensors or GGUF) with the transformer, or with several components."""
    base: str | None
    """A directory, a hub id or `embedded:NAME` with all that the file `path` lacks: configs, tokenizers, scheduler, and
    the other components. null: `path` is not a file."""
    files: ModelFilesConfig
    revision: str | None
    """Git revision of a hub id. null: the branch `main`, as it is in the local hub cache, else on the hub. Rank 0
    replaces it by the full commit before the run starts."""
    variant: Annotated[str, Matches(r"[A-Za-z0-9_-]+", "letters, digits, '_' and '-'")] | None
    """Variant of the weight files: with `fp16`, `model.fp16.safetensors` is loaded instead of `model.safetensors`, in
    each component that has it. null: the files without a variant."""
    sha256: Annotated[str, Matches(r"[0-9a-fA-F]{64}", "64 hex digits")] | None
    """Hash of the files that the model is loaded from (docs/run-directory.md). If they have another one, nothing is
    loaded. null: not checked."""
    weights: Literal["pretrained", "random"]
    """pretrained: load the weights from `path`. random: make weights of `layout` on the device, without a download, to
    measure speed and memory. Images of random weights are noise."""
    layout: Annotated[str, OneOf(LAYOUT_NAMES)] | None
    """Sizes of the random weights. null: none, which only pretrained weights allow."""
    dtype: DType
    """Type of the weights and of the arithmetic. optimization may give some layers another one."""
    resolution: PixelCount
    """Side in pixels of the square that the model was trained for. Samples without a size of their own get it."""
    controlnet: ControlNetConfig | None = None
    """The ControlNet of a family that has one. null: there is none."""

    @property
    def source(self) -> str:
        """What names the model in the layout of diffusers: `base` or, without one, `path`."""
        return self.path if self.base is None else self.base


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModelConfig:
    """A model without a network. It draws images at a set speed, for dry runs, tests and studies of load balance."""

    family: Literal["fake"]
    name: Name
    """Name of the model in messages and results."""
    seconds_per_step: list[Annotated[float, Range(0)]]
    """Seconds per step and image of `resolution` x `resolution` pixels, on rank 0, 1, ... The list repeats for further
    ranks. Images of other sizes take time in proportion to their tokens."""
    fail_every: Annotated[int, Range(0)]
    """Tasks whose seed is a multiple of this number fail. 0: no task fails."""
    broken_rank: Annotated[int, Range(0)] | None
    """The rank on which loading the model fails. null: no rank."""
    resolution: PixelCount
    """Side in pixels of the square that samples without a size of their own get."""


EVALUATIONS_PER_STEP: Mapping[str, int] = {"flow_match_heun": 2}
"""Evaluations of the velocity per step, by `scheduler.name`. Schedulers that are not listed need one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The sampler of the flow ODE."""

    name: Literal[
        "flow_match_euler",
        "flow_match_heun",
        "flow_match_lcm",
        "dpmsolver_multistep",
        "dpmsolver_singlestep",
        "unipc",
        "deis",
    ]
    """The method that solves the ODE."""
    shift: Annotated[float, Above(0)] | None
    """Timestep shift. null: the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """The sampling parameters, the same for all samples of a run."""

    steps: Annotated[int, Range(1, 1000)]
    """Number of steps of the schedule. With `strength` below 1, the first ones are not run."""
    guidance: Annotated[float, Range(0, 100)]
    """Guidance scale, for models with guidance embeddings."""
    true_cfg_scale: Annotated[float, Range(1, 100)]
    """Weight of the prompt against the negative prompt. Above 1, each step makes a second pass of the transformer with
    the negative prompt, so that it takes twice as long. 1: no second pass."""
    negative_prompt: str | None
    """What images should not show, for samples without a negative prompt of their own. Empty text is allowed. null:
    these samples have none. It has an effect if `true_cfg_scale` is above 1."""
    prompt_2: str | None
    """The prompt that T5 reads, for samples without a `prompt_2` of their own. CLIP reads the sample's prompt. null:
    both read the sample's prompt."""
    controlnet_scale: Annotated[float, Range(0, 10)]
    """Factor of what a ControlNet adds to the transformer. diffusers calls it `controlnet_conditioning_scale`."""
    control_guidance_start: Annotated[float, Range(0, 1)]
    """Fraction of the steps after which the ControlNet begins to add something."""
    control_guidance_end: Annotated[float, Range(0, 1)]
    """Fraction of the steps after which the ControlNet adds nothing more."""
    control_mode: Annotated[int, Range(0)] | None
    """Kind of the control images, for a ControlNet of several kinds (Union); its model card lists them. null: it has
    one kind."""
    seed: Seed
    """Seed of the noise samples. Each task derives its own seed from it, the sample's key and the image index."""
    height: PixelCount | None
    """Height of images in pixels. null: from the sample. If only one side is null, it follows from the sample's
    proportions."""
    width: PixelCount | None
    """Width of images in pixels. null: see `height`."""
    max_pixels: Annotated[int, Range(256)]
    """Limit of height times width if both are null: larger samples are scaled down to it."""
    strength: Annotated[float, Above(0), Range(0, 1)]
    """Fraction of the steps that are run. 1: start from noise alone. Below 1: start from the image with noise added."""
    max_sequence_length: Annotated[int, Range(1, 512)] | None
    """Number of T5 tokens. null: as many as the model was trained with."""
    images_per_sample: Count
    batch_size: Count | None
    """Images per batch. null: chosen from the number of tokens and the free memory."""


ModelConfig = FluxModelConfig | FakeModelConfig
