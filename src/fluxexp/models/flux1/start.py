"""Strategy 2 of 4: the latents at which denoising starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL.Image import Image

from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.image_encoding import ImageEncoder, PixelTable
from fluxexp.models.flux1.latents import BatchNoise
from fluxexp.models.flux1.schedules import PreparedSchedule
from fluxexp.models.schedulers import add_noise


class Start(Protocol):
    """Makes the first latents of a batch."""

    def read(self, item: ModelInput) -> Any:
        """The part of one input that `latents` needs."""
        ...

    def latents(self, inputs: Sequence[Any], noise: BatchNoise, schedule: PreparedSchedule) -> torch.Tensor:
        """Latents (B, latent channels, H / scale, W / scale) at the first noise level of `schedule`.

        Args:
            inputs: for each image of the batch, the result of `read`.
            noise: of the batch.
            schedule: of the batch.
        """
        ...


class StartFromNoise:
    """Pure noise, at full strength."""

    def read(self, item: ModelInput) -> None:
        """Nothing is needed."""

    def latents(self, inputs: Sequence[None], noise: BatchNoise, schedule: PreparedSchedule) -> torch.Tensor:
        """The noise itself."""
        return noise("noise")


class StartFromImage:
    """The image, with as much noise as the strength asks for.

    At strength 1 diffusers encodes the image and multiplies it by zero. fluxexp does not encode it. The random numbers
    for it are still drawn, so that later numbers do not change.
    """

    def __init__(self, pixels: PixelTable, encoder: ImageEncoder) -> None:
        self._pixels = pixels
        self._encoder = encoder

    def read(self, item: ModelInput) -> Image:
        """The picture. It is encoded only when a batch needs it: at strength 1 no batch does."""
        assert item.image is not None
        return item.image

    def latents(self, inputs: Sequence[Image], noise: BatchNoise, schedule: PreparedSchedule) -> torch.Tensor:
        """Noise, mixed with the image below strength 1."""
        start = noise("noise")
        if schedule.starts_from_noise:
            return start
        clean = self._clean(inputs, noise("image posterior"))
        return add_noise(schedule.scheduler, clean, start, schedule.timesteps)

    def _clean(self, images: Sequence[Image], noise: torch.Tensor) -> torch.Tensor:
        """Latents of the images. Each is encoded alone, as in diffusers: a batch would round differently."""
        latents = []
        for image, own_noise in zip(images, noise[:, None], strict=True):
            pixels = self._pixels([image]).to(self._encoder.dtype)
            latents.append(self._encoder.sample(self._encoder.posterior(pixels), own_noise))
        return torch.cat(latents)
