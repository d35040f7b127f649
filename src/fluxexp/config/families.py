"""Declares every model family: what it needs, which checkpoints it loads, and how many tokens an image costs.

Imports no torch and no other module of fluxexp, so a config is checked before a model loads. Code that depends on the
family asks its entry in `FAMILIES`; it never compares names. `models/flux1/variants.py` holds the other half: how
each family conditions and denoises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Use = Literal["required", "optional", "unused"]
Guidance = Literal["embedded", "true_cfg", "none"]

_FLUX1_COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family. The defaults are those of FLUX.1 text to image."""

    name: str
    """Value of `model.family`."""
    purpose: str
    """What it does, as the end of a sentence: error messages quote it."""
    pipeline: str | None
    """Pipeline class of diffusers; None for a family without a network."""
    checkpoints: tuple[str, ...] = ()
    """Further pipeline classes whose directories hold the same components, so this family can load them."""
    components: tuple[str, ...] = _FLUX1_COMPONENTS
    """Directories that a checkpoint must have."""
    image: Use = "unused"
    mask: Use = "unused"
    references: Use = "unused"
    control_image: Use = "unused"
    negative_prompt: Use = "unused"
    guidance: Guidance = "embedded"
    """embedded: an input of the transformer, where its checkpoint has guidance embeddings (schnell has none). true_cfg:
    a second pass with a negative prompt."""
    layouts: tuple[str, ...] = ()
    """Names of the layouts of random weights (`model.layout`) that fit this family."""
    latents_per_token: int = 1
    """Packed latents in the channels of one input token of the transformer: the noisy ones, and any concatenated."""
    concatenates_mask: bool = False
    """Whether every pixel of the mask is a channel of its token, too."""
    unsupported_optimizations: frozenset[str] = frozenset()
    """Keys of `optimization` that this family cannot use."""
    token_side: int = 16
    """Side in pixels of the square that one image token stands for."""
    max_text_tokens: int = 512
    """T5 tokens where neither the config nor the tokenizer asks for fewer."""

    @property
    def paints_masked_region(self) -> bool:
        """Whether a mask says which pixels are made: then results can be pasted back, and scored inside the mask."""
        return self.mask != "unused"

    @property
    def classes(self) -> tuple[str, ...]:
        """Pipeline classes whose directories this family can load."""
        return self.checkpoints if self.pipeline is None else (self.pipeline, *self.checkpoints)

    def tokens(self, pixels: int, text_tokens: int | None = None) -> int:
        """Tokens that the transformer sees for one image: compute and memory grow with them.

        Args:
            pixels: height times width, each a multiple of `token_side`.
            text_tokens: None for `max_text_tokens`.
        """
        return self.image_tokens(pixels) + (self.max_text_tokens if text_tokens is None else text_tokens)

    def image_tokens(self, pixels: int) -> int:
        """Tokens of the image that is made, without text. Its timestep shift depends on them."""
        return pixels // self.token_side**2

    def in_channels(self, packed_channels: int, vae_scale: int) -> int:
        """Input channels of the transformer: what tells this family's checkpoints from others.

        Args:
            packed_channels: channels of one packed latent, 4 * latent channels.
            vae_scale: pixels to one latent, along a side.
        """
        return self.latents_per_token * packed_channels + (4 * vae_scale**2 if self.concatenates_mask else 0)

    def missing(self, **inputs: object) -> list[str]:
        """Names of required inputs that are None, of those given: `missing(image=..., mask=...)`."""
        return [name for name, value in inputs.items() if value is None and getattr(self, name) == "required"]

    def supports(self, optimization: str) -> bool:
        """Whether `optimization`, a key of the config group of that name, can be applied."""
        return optimization not in self.unsupported_optimizations


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="flux",
            purpose="makes images from text alone",
            pipeline="FluxPipeline",
            layouts=("flux_dev", "flux_schnell"),
        ),
        Family(
            name="flux_fill",
            purpose="fills the masked region of an image",
            pipeline="FluxFillPipeline",
            image="required",
            mask="required",
            layouts=("flux_fill",),
            latents_per_token=2,
            concatenates_mask=True,
        ),
        Family(
            name="flux_img2img",
            purpose="changes a whole image, starting from it at a strength",
            pipeline="FluxImg2ImgPipeline",
            checkpoints=("FluxPipeline",),
            image="required",
            layouts=("flux_dev", "flux_schnell"),
        ),
        Family(
            name="fake",
            purpose="draws gradients without a network",
            pipeline=None,
            components=(),
            image="optional",
            mask="optional",
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
    """The family whose own pipeline class is `class_name`.

    Raises:
        ValueError: no family has this pipeline class.
    """
    return _only((family for family in FAMILIES.values() if family.pipeline == class_name), class_name)


def family_of_channels(in_channels: int, packed_channels: int, vae_scale: int) -> Family:
    """The first family whose transformer has this many input channels; see `Family.in_channels`.

    Raises:
        ValueError: no family has a transformer like that.
    """
    fitting = (
        family
        for family in FAMILIES.values()
        if family.pipeline is not None and family.in_channels(packed_channels, vae_scale) == in_channels
    )
    return _only(fitting, f"a transformer of {in_channels} input channels")


def _only(families: Iterable[Family], what: str) -> Family:
    family = next(iter(families), None)
    if family is None:
        raise ValueError(f"no model family has {what}: families are {', '.join(PIPELINE_FAMILIES)}")
    return family
