"""Schema of what is generated: the config groups model, scheduler, sampling and dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fluxexp.config.families import LAYOUT_NAMES, PIPELINE_FAMILIES, Input
from fluxexp.config.rules import Above, Matches, OneOf, Range
from fluxexp.config.schema_types import Count, Name, PixelCount, Seed

MaskKind = Literal["box", "center", "strokes", "outpaint"]
MaskChoice = Literal["box", "center", "strokes", "outpaint", "none"]
"""The kind of mask that fluxexp draws for a sample without one. none: samples have no mask, for model families that
use none."""
PlacementMode = Literal["fit", "crop", "pad"]
"""How an image gets the working size. fit: resize the whole image. crop: resize the largest window with the working
proportions, at the place that covers most of the mask. pad: resize with the same proportions and repeat the border
pixels."""
ImagesAre = Literal["inputs", "controls", "references"]
"""What the images of a dataset are for the model. inputs: images to change. controls: outlines, depth maps or poses
that the result follows. references: pictures that the model looks at, and edits by the prompt."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesDatasetConfig:
    """Scenes with captions and masks that fluxexp draws."""

    kind: Literal["shapes"]
    length: Count
    """Number of scenes."""
    height: PixelCount
    width: PixelCount
    seed: Seed
    """Seed of the scenes. It does not depend on the run's seed."""
    limit: Count | None
    """Use only this many samples, from the first on. null: all."""
    placement: PlacementMode
    controls: Literal["outlines"] | None
    """outlines: each sample has the outlines of its scene as its control image. null: no control image."""
    references: Literal["scenes"] | None
    """scenes: each sample has its whole scene as a reference. null: no reference."""
    style: Literal["outlined", "pastel"] | None
    """Style of the masked object in the ground truth; prompts and inputs do not depend on it. null: no style."""
    mask_padding: ClassVar[None] = None
    """Not a key: the masks are not cropped."""
    is_drawn: ClassVar[bool] = True
    """Not a key: whether fluxexp draws the samples. Then a family may ignore some of their inputs."""
    can_set_prompts: ClassVar[bool] = False
    """Not a key: whether samples can have a negative prompt, a `prompt_2` and a `true_cfg_scale` of their own."""

    @property
    def inputs(self) -> frozenset[Input]:
        """What each sample has besides its prompt."""
        return _further_inputs(self.controls, self.references).union(("image", "mask"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesDatasetConfig:
    """The keys of datasets that read images, and masks or draw them."""

    prompt: str | None
    """Prompt of samples without a caption (a .txt file next to the image, or a column). null: such a sample fails."""
    images_are: ImagesAre
    """What the images are for the model: inputs, controls or references. Only inputs have masks."""
    controls: str | None
    """Where further pictures are, which are control images: see the kind of the dataset. null: there are none."""
    references: str | None
    """The same for references."""
    alpha_mask: bool
    """Use the alpha channel of images without a mask file as their mask: transparent pixels are painted."""
    mask: MaskChoice | None
    """Kind of mask to draw for samples without one. null: such a sample fails. none: mask files and alpha channels are
    not used."""
    invert_mask: bool
    """Paint the black pixels of mask files, and keep the white ones. Masks from alpha channels and drawn masks stay."""
    mask_blur: Annotated[float, Range(0, 1000)]
    """Standard deviation in pixels of a Gaussian filter for masks. The result is blended with the image by the filtered
    mask, and the model paints all pixels where it is not 0. So pixels near the mask change. 0: a hard border."""
    mask_padding: Annotated[int, Range(0)] | None
    """Paint only a crop: the bounding box of the mask with this many pixels around it, extended to the proportions of
    the working size. diffusers calls it `padding_mask_crop`. null: no crop."""
    max_image_megapixels: Annotated[float, Above(0)]
    """Images, masks and ground truths with more million pixels are not decoded: their samples fail."""
    allowed_folders: list[str]
    """Further folders whose files samples may use. Links, absolute paths and `..` that lead out of the dataset's own
    folders and of these make a failed sample. `[/]` allows all files."""
    limit: Count | None
    """Use only this many samples, from the first on. null: all."""
    placement: PlacementMode
    is_drawn: ClassVar[bool] = False
    can_set_prompts: ClassVar[bool] = False

    @property
    def inputs(self) -> frozenset[Input]:
        """What each sample has besides its prompt."""
        own: dict[ImagesAre, frozenset[Input]] = {
            "inputs": frozenset({"image", "mask"} if self.has_masks else {"image"}),
            "controls": frozenset({"control_image"}),
            "references": frozenset({"references"}),
        }
        return own[self.images_are] | _further_inputs(self.controls, self.references)

    @property
    def has_masks(self) -> bool:
        """Whether samples have masks."""
        return self.images_are == "inputs" and self.mask != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderDatasetConfig(ImagesDatasetConfig):
    """Images in a folder and its subfolders. `controls` and `references` are folders of pictures with the names of the
    images."""

    kind: Literal["folder"]
    path: str
    """The folder of images."""
    masks: str | None
    """A folder of masks with the names of the images. null: NAME_mask.png, NAME.mask.png or NAME-mask.png next to each
    image."""
    truths: str | None
    """A folder of ground truths with the names of the images. null: there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDatasetConfig(ImagesDatasetConfig):
    """A .csv, .jsonl or .parquet file with columns prompt, image, mask, and optionally truth, key, size, guidance,
    true_cfg_scale, negative_prompt, prompt_2, lora, lora_scale.

    `controls` and `references` are names of columns with paths of pictures."""

    can_set_prompts: ClassVar[bool] = True
    kind: Literal["table"]
    path: str
    """The table. Relative paths in it start at its folder."""

    @property
    def image_column(self) -> str:
        """The column of the images that `images_are` is about."""
        names = {
            "inputs": "image",
            "controls": self.controls or "control",
            "references": self.references or "reference",
        }
        return names[self.images_are]

    @property
    def further_columns(self) -> tuple[str, ...]:
        """The columns of control images and references, except `image_column`."""
        columns = (self.controls, self.references)
        return tuple(name for name in columns if name is not None and name != self.image_column)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsDatasetConfig:
    """Prompts without images: a .txt file with one prompt per line, or a table with a prompt column."""

    kind: Literal["prompts"]
    path: str
    """The text file or table."""
    limit: Count | None
    """Use only this many samples, from the first on. null: all."""
    placement: ClassVar[PlacementMode] = "fit"
    """Not a key, because there is no image to place."""
    mask_padding: ClassVar[None] = None
    """Not a key, because there is no mask."""
    inputs: ClassVar[frozenset[Input]] = frozenset()
    is_drawn: ClassVar[bool] = False
    can_set_prompts: ClassVar[bool] = True


def _further_inputs(controls: str | None, references: str | None) -> frozenset[Input]:
    """The inputs that the keys `controls` and `references` add."""
    further: list[tuple[Input, str | None]] = [("control_image", controls), ("references", references)]
    return frozenset(name for name, value in further if value is not None)


ModelConfig = FluxModelConfig | FakeModelConfig
DatasetConfig = ShapesDatasetConfig | FolderDatasetConfig | TableDatasetConfig | PromptsDatasetConfig
