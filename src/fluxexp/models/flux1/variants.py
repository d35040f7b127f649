"""The FLUX.1 families as choices of four strategies: one entry in `VARIANTS` for each family of `config/families.py`.

In eager mode each variant gives the same bits as its pipeline in diffusers (`tests/models/test_bit_identity.py`,
`test_pipelines.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image

from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.after_step import AfterStep, BlendUnmasked, KeepLatents
from fluxexp.models.flux1.image_encoding import ImageEncoder, PixelTable
from fluxexp.models.flux1.input_tokens import (
    AppendContext,
    ConcatControl,
    ConcatMaskedImage,
    ControlPixels,
    InputTokens,
    NoInputTokens,
)
from fluxexp.models.flux1.inside_step import InsideStep, Passes
from fluxexp.models.flux1.source_images import SourceImages
from fluxexp.models.flux1.start import Start, StartFromImage, StartFromNoise


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How one family conditions and denoises. The defaults are text to image."""

    noise_order: tuple[str, ...] = ("noise",)
    """Random tensors of latent shape that diffusers draws for each image, in its order. Strategies ask for them by
    name. All are drawn, even those that a batch does not use: a later one depends on those before it."""
    input_tokens: InputTokens = field(default_factory=NoInputTokens)
    start: Start = field(default_factory=StartFromNoise)
    after_step: AfterStep = field(default_factory=KeepLatents)
    inside_step: InsideStep = field(default_factory=Passes)
    control_images: ConcatControl | ControlPixels | None = None
    """What a ControlNet reads; None without one. It is not joined with the input tokens of the transformer."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a loaded pipeline that strategies are built from."""

    pipeline: Any
    encoder: ImageEncoder
    device: torch.device

    def image_pixels(self) -> PixelTable:
        """For RGB images."""
        return PixelTable(self.pipeline.image_processor, "RGB", self.device)

    def source_images(self, noise_name: str | None = "image posterior") -> SourceImages:
        """For the images that denoising starts from or looks at. `noise_name` is that of `SourceImages`."""
        return SourceImages(self.image_pixels(), self.encoder, noise_name)

    def control_tokens(self) -> ConcatControl:
        """For control images as channels."""
        return ConcatControl(self.image_pixels(), self.encoder)

    def control_images(self) -> ConcatControl | ControlPixels:
        """For the control images of a ControlNet."""
        if self.pipeline.controlnet.input_hint_block is None:
            return self.control_tokens()
        return ControlPixels(self.image_pixels(), self.encoder.dtype)

    def with_control_noise(self, *others: str) -> tuple[str, ...]:
        """`Variant.noise_order`: a ControlNet that reads latents samples them first."""
        reads_pixels = self.pipeline.controlnet.input_hint_block is not None
        return others if reads_pixels else ("control posterior", *others)

    @property
    def scale(self) -> int:
        """Pixels per latent along a side."""
        return int(self.pipeline.vae_scale_factor)

    def mask_pixels(self) -> PixelTable:
        """For masks."""
        return PixelTable(self.pipeline.mask_processor, "L", self.device)


def _text_to_image(parts: Parts) -> Variant:
    return Variant()


def _fill(parts: Parts) -> Variant:
    pixels = parts.image_pixels()
    return Variant(
        noise_order=("image posterior", "noise", "masked image posterior"),
        input_tokens=ConcatMaskedImage(pixels, parts.mask_pixels(), parts.encoder, parts.scale),
        start=StartFromImage(parts.source_images()),
    )


def _image_to_image(parts: Parts) -> Variant:
    return Variant(
        noise_order=("image posterior", "noise"),
        start=StartFromImage(parts.source_images()),
    )


def _inpaint(parts: Parts) -> Variant:
    images = parts.source_images()
    return Variant(
        noise_order=("image posterior", "noise", "masked image posterior"),
        start=StartFromImage(images),
        after_step=BlendUnmasked(images, parts.mask_pixels(), parts.scale),
    )


def _control(parts: Parts) -> Variant:
    return Variant(noise_order=("control posterior", "noise"), input_tokens=parts.control_tokens())


def _control_image_to_image(parts: Parts) -> Variant:
    return Variant(
        noise_order=("control posterior", "image posterior", "noise"),
        input_tokens=parts.control_tokens(),
        start=StartFromImage(parts.source_images()),
    )


def _control_inpaint(parts: Parts) -> Variant:
    images = parts.source_images()
    return Variant(
        # diffusers encodes the masked image first, and does not use it.
        noise_order=("masked image posterior", "control posterior", "image posterior", "noise"),
        input_tokens=parts.control_tokens(),
        start=StartFromImage(images),
        after_step=BlendUnmasked(images, parts.mask_pixels(), parts.scale),
    )


def _controlnet(parts: Parts) -> Variant:
    return Variant(noise_order=parts.with_control_noise("noise"), control_images=parts.control_images())


def _controlnet_image_to_image(parts: Parts) -> Variant:
    return Variant(
        noise_order=parts.with_control_noise("image posterior", "noise"),
        start=StartFromImage(parts.source_images()),
        control_images=parts.control_images(),
    )


def _controlnet_inpaint(parts: Parts) -> Variant:
    images = parts.source_images()
    return Variant(
        noise_order=parts.with_control_noise("image posterior", "noise", "masked image posterior"),
        start=StartFromImage(images),
        after_step=BlendUnmasked(images, parts.mask_pixels(), parts.scale),
        control_images=parts.control_images(),
    )


def _kontext(parts: Parts) -> Variant:
    return Variant(input_tokens=AppendContext(parts.source_images(noise_name=None), _reference))


def _kontext_inpaint(parts: Parts) -> Variant:
    images = parts.source_images(noise_name=None)
    return Variant(
        noise_order=("noise", "masked image posterior"),
        input_tokens=AppendContext(images, lambda item: _reference(item) if item.references else _image(item)),
        start=StartFromImage(images),
        after_step=BlendUnmasked(images, parts.mask_pixels(), parts.scale),
    )


def _reference(item: ModelInput) -> Image:
    return item.references[0]


def _image(item: ModelInput) -> Image:
    assert item.image is not None
    return item.image


VARIANTS: Mapping[str, Callable[[Parts], Variant]] = {
    "flux": _text_to_image,
    "flux_fill": _fill,
    "flux_img2img": _image_to_image,
    "flux_inpaint": _inpaint,
    "flux_control": _control,
    "flux_control_img2img": _control_image_to_image,
    "flux_control_inpaint": _control_inpaint,
    "flux_redux": _text_to_image,
    "flux_fill_redux": _fill,
    "flux_controlnet": _controlnet,
    "flux_controlnet_img2img": _controlnet_image_to_image,
    "flux_controlnet_inpaint": _controlnet_inpaint,
    "flux_kontext": _kontext,
    "flux_kontext_inpaint": _kontext_inpaint,
}
"""By the name of the family."""
