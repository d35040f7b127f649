"""Declares every model family: what it needs, which checkpoints it loads, and how many tokens an image costs.

Imports no torch and no other module of fluxexp, so a config is checked before a model loads. Code that depends on the
family asks its entry in `FAMILIES`; it never compares names. `models/flux1/variants.py` holds the other half: how
each family conditions and denoises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Input = Literal["image", "mask", "references", "control_image", "negative_prompt"]
"""What a sample can have besides its prompt."""
Guidance = Literal["embedded", "true_cfg", "none"]

_FLUX1_COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
_DEV_LAYOUTS = ("flux_dev", "flux_schnell", "small_dev")
_KONTEXT_LAYOUTS = ("flux_dev", "small_dev")
_REDUX_TOKENS = (384 // 14) ** 2
"""SigLIP of FLUX.1-Redux sees 384 x 384 pixels in patches of 14 x 14."""
_MAX_REDUX_REFERENCES = 8
"""diffusers has no limit, but it adds up the tokens of all references: of many, nothing can be seen."""
_CONTROL_LAYOUTS = ("flux_control", "small_control")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family. The defaults are those of FLUX.1 text to image."""

    name: str
    """Value of `model.family`."""
    purpose: str
    """What the family does, as the end of a sentence. Error messages quote it."""
    pipeline: str | None
    """Pipeline class of diffusers; None for a family without a network."""
    line: str = "flux1"
    """Key of `LINES` (`models/loading/model_lines.py`): which model class conditions and denoises."""
    checkpoints: tuple[str, ...] = ()
    """Other pipeline classes whose checkpoints this family can load, because they have the same components."""
    widened: tuple[str, ...] = ()
    """Pipeline classes whose checkpoints this family can load with a Control LoRA. Their transformers lack the input
    channels of the control image. fluxexp adds them with weights of 0, as diffusers does; the LoRA changes these."""
    components: tuple[str, ...] = _FLUX1_COMPONENTS
    """Directories that a checkpoint must have."""
    required: frozenset[Input] = frozenset()
    """Inputs that every sample must have."""
    optional: frozenset[Input] = frozenset()
    """Inputs that are used if a sample has them."""
    guidance: Guidance = "embedded"
    """embedded: an input of the transformer, if its checkpoint has guidance embeddings (schnell has none). true_cfg: a
    second pass with a negative prompt, always. A family with embedded guidance makes one as well, if it takes negative
    prompts and `sampling.true_cfg_scale` is above 1."""
    layouts: tuple[str, ...] = ()
    """Names of the layouts of random weights (`model.layout`) that fit this family."""
    latents_per_token: int = 1
    """Number of packed latents in the channels of one input token: the noisy latents, and concatenated ones."""
    concatenates_mask: bool = False
    """Whether each mask pixel of a token's square is one of the token's channels."""
    has_controlnet: bool = False
    """Whether a second network (`model.controlnet`) reads the control image and adds to the transformer's blocks."""
    appended_pictures: int = 0
    """Number of pictures of the working size whose tokens follow those of the image."""
    picture_text_tokens: int = 0
    """Number of tokens of a reference that follow those of the text (FLUX.1 Redux). 0: the family has no Redux."""
    takes_ip_adapter: bool = False
    """Whether the family can have an IP-Adapter."""
    max_references: int = 1
    """The most references of a sample. More are a mistake."""
    unsupported_optimizations: frozenset[str] = frozenset()
    """Keys of `optimization` that this family cannot use."""
    token_side: int = 16
    """Side in pixels of the square that one image token stands for."""
    max_text_tokens: int = 512
    """Number of T5 tokens, if neither the config nor the tokenizer asks for fewer."""

    @property
    def inputs(self) -> frozenset[Input]:
        """All inputs that the family can use. A sample with others is a mistake."""
        return self.required | self.optional

    def needing_references(self) -> Family:
        """This family with an IP-Adapter, which looks at a reference."""
        return replace(self, required=self.required | {"references"}, max_references=1)

    def passes(self, true_cfg_scale: float) -> int:
        """Number of transformer passes of one evaluation of the velocity."""
        return 2 if self.guidance == "true_cfg" or true_cfg_scale > 1 else 1

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether the pipeline of the family has `negative_prompt` and `true_cfg_scale`."""
        return "negative_prompt" in self.inputs

    @property
    def has_redux(self) -> bool:
        """Whether references become tokens that follow those of the text."""
        return self.picture_text_tokens > 0

    @property
    def takes_second_prompt(self) -> bool:
        """Whether the family has a second text encoder, which can read another prompt."""
        return "text_encoder_2" in self.components

    @property
    def takes_loras(self) -> bool:
        """Whether the family has weights that LoRAs can change."""
        return self.pipeline is not None

    @property
    def paints_masked_region(self) -> bool:
        """Whether a mask says which pixels are made. Then results can be pasted back and scored inside the mask."""
        return "mask" in self.inputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Pipeline classes whose checkpoints this family can load."""
        return self.checkpoints if self.pipeline is None else (self.pipeline, *self.checkpoints)

    def tokens(self, pixels: int, text_tokens: int | None = None) -> int:
        """Number of tokens of one image in the transformer. Time and memory grow with it.

        Args:
            pixels: height times width, each a multiple of `token_side`.
            text_tokens: number of T5 tokens: the result of `text_tokens`, or before a tokenizer is loaded
                `sampling.max_sequence_length`. None for `max_text_tokens`, which is an upper bound.
        """
        of_pictures = self.image_tokens(pixels) * (1 + self.appended_pictures)
        of_text = self.max_text_tokens if text_tokens is None else text_tokens
        return of_pictures + of_text + self.picture_text_tokens

    def text_tokens(self, max_sequence_length: int | None, tokenizer_limit: int) -> int:
        """Number of T5 tokens to which a prompt is padded.

        Args:
            max_sequence_length: `sampling.max_sequence_length`; None for as many as model and tokenizer allow.
            tokenizer_limit: maximum length of the tokenizer (256 for FLUX.1-schnell).
        """
        return min(self.max_text_tokens, tokenizer_limit) if max_sequence_length is None else max_sequence_length

    def image_tokens(self, pixels: int) -> int:
        """Number of tokens of the generated image alone. The timestep shift depends on it."""
        return pixels // self.token_side**2

    def in_channels(self, packed_channels: int, vae_scale: int) -> int:
        """Number of input channels of the transformer. It distinguishes the checkpoints of families.

        Args:
            packed_channels: channels of one packed latent: 4 times the latent channels.
            vae_scale: pixels per latent along a side.
        """
        return self.latents_per_token * packed_channels + (4 * vae_scale**2 if self.concatenates_mask else 0)

    def widened_channels(self, in_channels: int, packed_channels: int) -> int | None:
        """Number of input channels that a transformer with `in_channels` gets (see `widened`); None: it stays as it is.

        Args:
            in_channels: of the checkpoint's transformer.
            packed_channels: channels of one packed latent, which are the output channels of the transformer.
        """
        if not self.widened or in_channels != packed_channels:
            return None
        return self.latents_per_token * packed_channels

    def supports(self, optimization: str) -> bool:
        """Whether the family can use `optimization`, a key of the config group optimization."""
        return optimization not in self.unsupported_optimizations


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="flux",
            purpose="makes images from text alone",
            pipeline="FluxPipeline",
            optional=frozenset({"negative_prompt"}),
            layouts=_DEV_LAYOUTS,
            takes_ip_adapter=True,
        ),
        Family(
            name="flux_fill",
            purpose="fills the masked region of an image",
            pipeline="FluxFillPipeline",
            required=frozenset({"image", "mask"}),
            layouts=("flux_fill", "small_fill"),
            latents_per_token=2,
            concatenates_mask=True,
        ),
        Family(
            name="flux_img2img",
            purpose="changes a whole image to match a prompt",
            pipeline="FluxImg2ImgPipeline",
            checkpoints=("FluxPipeline",),
            required=frozenset({"image"}),
            optional=frozenset({"negative_prompt"}),
            layouts=_DEV_LAYOUTS,
            takes_ip_adapter=True,
        ),
        Family(
            name="flux_inpaint",
            purpose="repaints the masked region of an image with a text-to-image model",
            pipeline="FluxInpaintPipeline",
            checkpoints=("FluxPipeline",),
            required=frozenset({"image", "mask"}),
            optional=frozenset({"negative_prompt"}),
            layouts=_DEV_LAYOUTS,
            takes_ip_adapter=True,
        ),
        Family(
            name="flux_control",
            purpose="makes images that follow a control image, such as edges or a depth map",
            pipeline="FluxControlPipeline",
            widened=("FluxPipeline",),
            required=frozenset({"control_image"}),
            layouts=_CONTROL_LAYOUTS,
            latents_per_token=2,
        ),
        Family(
            name="flux_control_img2img",
            purpose="changes a whole image to match a prompt and a control image",
            pipeline="FluxControlImg2ImgPipeline",
            checkpoints=("FluxControlPipeline",),
            widened=("FluxPipeline",),
            required=frozenset({"image", "control_image"}),
            layouts=_CONTROL_LAYOUTS,
            latents_per_token=2,
        ),
        Family(
            name="flux_control_inpaint",
            purpose="repaints the masked region of an image so that it follows a control image",
            pipeline="FluxControlInpaintPipeline",
            checkpoints=("FluxControlPipeline",),
            widened=("FluxPipeline",),
            required=frozenset({"image", "mask", "control_image"}),
            layouts=_CONTROL_LAYOUTS,
            latents_per_token=2,
        ),
        Family(
            name="flux_controlnet",
            purpose="makes images that follow a control image by a ControlNet",
            pipeline="FluxControlNetPipeline",
            checkpoints=("FluxPipeline",),
            required=frozenset({"control_image"}),
            optional=frozenset({"negative_prompt"}),
            layouts=_DEV_LAYOUTS,
            has_controlnet=True,
        ),
        Family(
            name="flux_controlnet_img2img",
            purpose="changes a whole image to match a prompt and a control image by a ControlNet",
            pipeline="FluxControlNetImg2ImgPipeline",
            checkpoints=("FluxPipeline", "FluxControlNetPipeline"),
            required=frozenset({"image", "control_image"}),
            layouts=_DEV_LAYOUTS,
            has_controlnet=True,
        ),
        Family(
            name="flux_controlnet_inpaint",
            purpose="repaints the masked region of an image so that it follows a control image by a ControlNet",
            pipeline="FluxControlNetInpaintPipeline",
            checkpoints=("FluxPipeline", "FluxControlNetPipeline"),
            required=frozenset({"image", "mask", "control_image"}),
            layouts=_DEV_LAYOUTS,
            has_controlnet=True,
        ),
        Family(
            name="flux_kontext",
            purpose="edits a reference picture as the prompt says",
            pipeline="FluxKontextPipeline",
            required=frozenset({"references"}),
            optional=frozenset({"negative_prompt"}),
            layouts=_KONTEXT_LAYOUTS,
            appended_pictures=1,
            takes_ip_adapter=True,
        ),
        Family(
            name="flux_kontext_inpaint",
            purpose="edits the masked region of an image as the prompt says",
            pipeline="FluxKontextInpaintPipeline",
            checkpoints=("FluxKontextPipeline",),
            required=frozenset({"image", "mask"}),
            optional=frozenset({"references", "negative_prompt"}),
            layouts=_KONTEXT_LAYOUTS,
            appended_pictures=1,
            takes_ip_adapter=True,
        ),
        Family(
            name="flux_redux",
            purpose="makes variations of a reference picture",
            pipeline="FluxPipeline",
            required=frozenset({"references"}),
            layouts=_DEV_LAYOUTS,
            picture_text_tokens=_REDUX_TOKENS,
            max_references=_MAX_REDUX_REFERENCES,
            takes_ip_adapter=True,
        ),
        Family(
            name="flux_fill_redux",
            purpose="fills the masked region of an image after a reference picture",
            pipeline="FluxFillPipeline",
            required=frozenset({"image", "mask", "references"}),
            layouts=("flux_fill", "small_fill"),
            latents_per_token=2,
            concatenates_mask=True,
            picture_text_tokens=_REDUX_TOKENS,
            max_references=_MAX_REDUX_REFERENCES,
        ),
        Family(
            name="fake",
            purpose="draws gradients without a network",
            pipeline=None,
            components=(),
            optional=frozenset({"image", "mask", "control_image", "references", "negative_prompt"}),
            guidance="none",
        ),
    )
}
"""Families by name. A new family is an entry here and one in `models/flux1/variants.py`."""

PIPELINE_FAMILIES: tuple[str, ...] = tuple(name for name, family in FAMILIES.items() if family.pipeline is not None)
"""Names of the families that load a pipeline of diffusers."""

LAYOUT_NAMES: tuple[str, ...] = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.layouts))
"""Names that `model.layout` may have."""


def families_loading(class_name: str) -> list[str]:
    """Names of the families that can load a checkpoint of this pipeline class."""
    return [family.name for family in FAMILIES.values() if class_name in family.classes]


def family_of_pipeline(class_name: str) -> Family:
    """Return the first family whose own pipeline class is `class_name`.

    Raises:
        ValueError: no family has this pipeline class.
    """
    return _only((family for family in FAMILIES.values() if family.pipeline == class_name), class_name)


def family_of_channels(in_channels: int, packed_channels: int, vae_scale: int) -> Family:
    """Return the first family whose transformer has this number of input channels; see `Family.in_channels`.

    Raises:
        ValueError: no family has such a transformer.
    """
    fitting = (
        family
        for family in FAMILIES.values()
        if family.pipeline is not None and family.in_channels(packed_channels, vae_scale) == in_channels
    )
    return _only(fitting, f"a transformer with {in_channels} input channels")


def _only(families: Iterable[Family], what: str) -> Family:
    family = next(iter(families), None)
    if family is None:
        raise ValueError(f"no model family has {what}; families: {', '.join(PIPELINE_FAMILIES)}")
    return family
