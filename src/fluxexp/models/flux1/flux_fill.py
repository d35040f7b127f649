"""FLUX.1-Fill: paints the masked part of an image. Adds to `flux.py` what the denoiser sees of the image.

In eager mode bit-identical to `FluxFillPipeline.__call__` with the same generators, at any strength. The pipeline
encodes the whole image, too, and at strength 1 multiplies it by zero; here that encode is left out, and only the
random numbers it would have drawn are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from fluxexp.errors import SampleError
from fluxexp.models.base import Job, ModelInput
from fluxexp.models.flux1.flux1_model import Flux1Model, PreparedSchedule, TextConditioning
from fluxexp.models.flux1.latents import NoiseSample, pack, stacked_noise, to_device
from fluxexp.models.schedulers import add_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class FillConditioning(TextConditioning):
    """A prompt and an image with a hole. Posteriors are kept instead of latents: each task samples its own."""

    image: Image.Image
    """The whole image, where denoising starts from below strength 1."""
    masked_posterior: torch.Tensor
    """Mean and log variance of the masked image's latents, (2 * latent channels, H / scale, W / scale)."""
    mask: torch.Tensor
    """The mask, packed: (image tokens, 4 * scale ** 2), 1 where to paint."""


class Flux1FillModel(Flux1Model):
    """A loaded `FluxFillPipeline`, taken apart into steps."""

    num_noise_tensors = 3

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        super().__init__(pipeline, device)
        self._image_levels = _levels(pipeline.image_processor, "RGB").to(device)
        self._mask_levels = _levels(pipeline.mask_processor, "L").to(device)

    @torch.inference_mode()
    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Any]:
        """Encode prompts and masked images, each as one batch."""
        # What the host does comes first: once encoders are given to the device it is not long until it needs the steps.
        images = [_present(item.image) for item in inputs]
        pixels = self._pixels(images, self._image_levels)
        masks = self._pixels([_present(item.mask) for item in inputs], self._mask_levels)
        masked = (pixels * (1 - masks)).to(self.dtype)
        packed_masks = self._pack_masks(masks).to(self.dtype)
        texts = super().condition(inputs, max_sequence_length)
        self.weight_streaming.enter("vae")
        posteriors = self.vae.encode(masked).latent_dist.parameters
        return [
            FillConditioning(
                height=text.height,
                width=text.width,
                prompt_embeds=text.prompt_embeds,
                pooled_embeds=text.pooled_embeds,
                image=image,
                masked_posterior=posterior,
                mask=mask,
            )
            for text, image, posterior, mask in zip(texts, images, posteriors, packed_masks, strict=True)
        ]

    def _start(
        self, jobs: Sequence[Job], noise_samples: Sequence[NoiseSample], schedule: PreparedSchedule
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # The library's order: image posterior, noise, masked-image posterior.
        latents = stacked_noise(noise_samples, 1, self.device)
        if schedule.first_sigma < 1.0:
            image_latents = self._image_latents(jobs, stacked_noise(noise_samples, 0, self.device))
            latents = add_noise(schedule.scheduler, image_latents, latents, schedule.timesteps)
        masked_posteriors = torch.stack([job.conditioning.masked_posterior for job in jobs])
        masked_latents = self._sample(masked_posteriors, stacked_noise(noise_samples, 2, self.device))
        masks = torch.stack([job.conditioning.mask for job in jobs])
        return pack(latents), torch.cat((pack(masked_latents), masks), dim=-1)

    def _image_latents(self, jobs: Sequence[Job], noise: torch.Tensor) -> torch.Tensor:
        """Latents of the whole images, where denoising starts from them and not from pure noise."""
        latents = []
        self.weight_streaming.enter("vae")
        for job, own_noise in zip(jobs, noise[:, None], strict=True):
            pixels = self._pixels([job.conditioning.image], self._image_levels).to(self.dtype)
            latents.append(self._sample(self.vae.encode(pixels).latent_dist.parameters, own_noise))
        return torch.cat(latents)

    def _sample(self, parameters: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, H, W) from posteriors (B, 2 C, H, W) and noise, in FLUX's scaling."""
        posterior = DiagonalGaussianDistribution(parameters)
        latents = posterior.mean + posterior.std * noise
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor  # type: ignore[no-any-return]

    def _pixels(self, images: Sequence[Image.Image], levels: torch.Tensor) -> torch.Tensor:
        """Of images of one size, RGB or L: float32 (B, channels, H, W) on the device, laid out as the library's."""
        pixels = to_device(torch.from_numpy(np.stack([np.asarray(image) for image in images])), self.device)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        return levels[pixels.long()].permute(0, 3, 1, 2)

    def _pack_masks(self, masks: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) to (B, image tokens, 4 * scale ** 2): every pixel of the mask becomes a channel of its token."""
        batch, _, height, width = masks.shape
        rows, columns = height // self.scale, width // self.scale
        cells = masks[:, 0].view(batch, rows, self.scale, columns, self.scale).permute(0, 2, 4, 1, 3)
        return pack(cells.reshape(batch, self.scale**2, rows, columns))


def _present(image: Image.Image | None) -> Image.Image:
    if image is None:
        raise SampleError("the sample has no image or no mask, and filling needs both: use a dataset that has them")
    return image


def _levels(processor: Any, mode: str) -> torch.Tensor:
    """What an image processor makes of each of the 256 levels of a picture that has its working size: float32 (256,).

    Looked up on the device they have the bits of its own arithmetic, which takes a CPU some 40 ms a picture.
    """
    height = processor.config.vae_scale_factor
    ramp = Image.frombytes("L", (256, height), bytes(range(256)) * height).convert(mode)
    levels: torch.Tensor = processor.preprocess([ramp], height=height, width=256)[0, 0, 0]
    return levels.to(torch.float32)
