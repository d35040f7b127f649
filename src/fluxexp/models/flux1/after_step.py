"""Strategy 3 of 4: what happens to the latents after each step of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image, fromarray

from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.flow import Conditioning
from fluxexp.models.flux1.image_encoding import PixelTable
from fluxexp.models.flux1.latents import BatchNoise, pack
from fluxexp.models.flux1.source_images import SourceImages
from fluxexp.models.schedulers import add_noise_again


class AfterStep(Protocol):
    """Changes latents between steps."""

    def read(self, item: ModelInput) -> Any:
        """The part of one input that `begin` needs: `Conditioning.after_step`."""
        ...

    def begin(self, conditionings: Sequence[Conditioning], noise: BatchNoise) -> Any:
        """What `apply` needs: a value that can be pickled, because it is sent to all ranks of a replica."""
        ...

    def apply(self, latents: torch.Tensor, number: int, scheduler: Any, begun: Any) -> torch.Tensor:
        """Latents for the next step.

        Args:
            latents: packed, (B, image tokens, 4 * latent channels).
            number: of the step that has just ended, 0 for the first one.
            scheduler: of this batch, after that step.
            begun: the result of `begin`.
        """
        ...


class KeepLatents:
    """Latents stay as the scheduler gave them."""

    def read(self, item: ModelInput) -> None:
        """Nothing is needed."""

    def begin(self, conditionings: Sequence[Conditioning], noise: BatchNoise) -> None:
        """Nothing is needed."""

    def apply(self, latents: torch.Tensor, number: int, scheduler: Any, begun: None) -> torch.Tensor:
        """The same latents."""
        return latents


@dataclass(frozen=True, slots=True)
class UnmaskedLatents:
    """What `BlendUnmasked` needs of a batch. All are packed: (B, image tokens, 4 * latent channels)."""

    clean: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    """1 in the masked region, 0 elsewhere."""


class BlendUnmasked:
    """Inpainting: outside the mask, the image with the noise of the next step replaces the latents after each step.

    Its variant starts from the same image (`StartFromImage`).

    Args:
        images: the source images that the variant starts from, too.
        mask_pixels: for masks.
        scale: pixels per latent along a side.
    """

    def __init__(self, images: SourceImages, mask_pixels: PixelTable, scale: int) -> None:
        self._images = images
        self._mask_pixels = mask_pixels
        self._scale = scale

    def read(self, item: ModelInput) -> Image:
        """The mask, with one pixel per latent: the upper left one of its square, as in diffusers."""
        assert item.mask is not None
        return fromarray(np.ascontiguousarray(np.asarray(item.mask)[:: self._scale, :: self._scale]))

    def begin(self, conditionings: Sequence[Conditioning], noise: BatchNoise) -> UnmaskedLatents:
        """Clean latents, noise and mask. diffusers also encodes the masked image, and does not use it."""
        start = noise("noise")
        clean = self._images.latents([each.start for each in conditionings], noise)
        masks = self._mask_pixels([each.after_step for each in conditionings]).to(start.dtype)
        return UnmaskedLatents(pack(clean), pack(start), pack(masks.repeat(1, start.shape[1], 1, 1)))

    def apply(self, latents: torch.Tensor, number: int, scheduler: Any, begun: UnmaskedLatents) -> torch.Tensor:
        """The latents inside the mask, and the image with noise outside; after the last step, the image itself."""
        unmasked = add_noise_again(scheduler, begun.clean, begun.noise)
        return (1 - begun.mask) * unmasked + begun.mask * latents
