"""Strategy 2 of 4: the latents at which denoising starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.latents import BatchNoise
from fluxexp.models.flux1.source_images import SourceImage, SourceImages
from fluxexp.models.schedulers import add_noise
from fluxexp.models.schedules import PreparedSchedule


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

    def __init__(self, images: SourceImages) -> None:
        self._images = images

    def read(self, item: ModelInput) -> SourceImage:
        """The picture. It is encoded only when a batch needs it: at strength 1 no batch does."""
        assert item.image is not None
        return self._images.of(item.image)

    def latents(self, inputs: Sequence[SourceImage], noise: BatchNoise, schedule: PreparedSchedule) -> torch.Tensor:
        """Noise, mixed with the image below strength 1."""
        start = noise("noise")
        if schedule.starts_from_noise:
            return start
        return add_noise(schedule.scheduler, self._images.latents(inputs, noise), start, schedule.timesteps)
