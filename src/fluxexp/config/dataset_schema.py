"""Schema of the config group dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fluxexp.config.families import Input
from fluxexp.config.rules import Above, Range
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WebDatasetMembersConfig:
    """Which members of a sample have which meaning, by what follows the key in their name."""

    prompt: str
    """The caption: `txt` is KEY.txt, and `json:caption` the field `caption` of KEY.json."""
    image: str | None
    """The image: `jpg` is KEY.jpg. null: the first member KEY.EXTENSION that is a picture."""
    mask: str
    """The mask: `mask` is KEY.mask.png or KEY.mask.webp, and `mask.png` only the first."""
    truth: str | None
    """The ground truth, in the same way. null: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebDatasetConfig(ImagesDatasetConfig):
    """Tars in the layout of webdataset: the members of a sample follow each other, and their names begin with its key.

    `controls` and `references` name members, as `members.mask` does."""

    kind: Literal["webdataset"]
    path: str
    """A tar, a folder of tars, or a pattern such as `data/{000..010}.tar`. A path or a URL."""
    members: WebDatasetMembersConfig
    keys: Literal["members", "shards"]
    """How samples are named. members: as in the tar. shards: TAR/KEY, for tars that have keys in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubColumnsConfig:
    """The columns of a dataset of the library `datasets`, by their meaning. null: there is no such column."""

    prompt: str | None
    image: str | None
    """Pictures, of the feature type Image, or bytes. null: the samples have only prompts."""
    mask: str | None
    truth: str | None
    key: str | None
    """Names of the samples. null: `row-` and the number of the row, which stays as long as no row is inserted."""
    negative_prompt: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDatasetConfig(ImagesDatasetConfig):
    """A dataset that the library `datasets` reads: of the hub, parquet files with image bytes, an imagefolder with
    metadata, or tars of webdataset.

    `controls` and `references` are names of columns."""

    kind: Literal["hub"]
    path: str
    """A hub id (`org/name`), or a local folder or .parquet file."""
    name: str | None
    """Which configuration (subset) of the dataset. null: its only one."""
    split: Name
    """Which split: train, validation, test. Slices are not possible; see `limit`."""
    revision: str | None
    """Commit, branch or tag of a hub id. Rank 0 pins it to a commit when the run starts. null: the newest commit."""
    columns: HubColumnsConfig

    @property
    def can_set_prompts(self) -> bool:  # type: ignore[override]
        """Whether samples can have a negative prompt of their own."""
        return self.columns.negative_prompt is not None

    @property
    def inputs(self) -> frozenset[Input]:
        """What each sample has besides its prompt."""
        return frozenset() if self.columns.image is None else ImagesDatasetConfig.inputs.fget(self)  # type: ignore


DatasetConfig = (
    ShapesDatasetConfig
    | FolderDatasetConfig
    | TableDatasetConfig
    | PromptsDatasetConfig
    | WebDatasetConfig
    | HubDatasetConfig
)
