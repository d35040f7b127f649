"""FLUX.1-Fill: paints the masked part of an image. Adds to `flux.py` what the denoiser sees of the image.

In eager mode bit-identical to `FluxFillPipeline.__call__` with the same generators, at any strength. The pipeline
encodes the whole image, too, and at strength 1 multiplies it by zero; here that encode is left out, and only the
random numbers it would have drawn are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL.Image import Image

from fluxexp.errors import SampleError
from fluxexp.models.base import Job, ModelInput
from fluxexp.models.flux import FluxModel, Schedule, TextConditioning
from fluxexp.models.latents import Draws, noise_of, pack, to_device
from fluxexp.models.schedulers import add_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class FillConditioning(TextConditioning):
    """A prompt and an image with a hole. Posteriors are kept instead of latents: each task samples its own."""

    image: Image
    """The whole image, where denoising starts from below strength 1."""
    masked_posterior: torch.Tensor
    """Mean and log variance of the masked image's latents, (2 * latent channels, H / scale, W / scale)."""
    mask: torch.Tensor
    """The mask, packed: (image tokens, 4 * scale ** 2), 1 where to paint."""


class FluxFillModel(FluxModel):
    """A loaded `FluxFillPipeline`, taken apart into steps."""

    num_draws = 3

    @torch.inference_mode()
    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Any]:
        """Encode prompts and masked images, each as one batch."""
        # The host's part comes first: once encoders are given to the device it has little else to do until the steps.
        height, width = inputs[0].height, inputs[0].width
        images = [_present(item.image) for item in inputs]
        pixels = _preprocess(self.pipeline.image_processor, images, height, width)
        masks = _preprocess(self.pipeline.mask_processor, [_present(item.mask) for item in inputs], height, width)
        masked = to_device((pixels * (1 - masks)).to(self.dtype), self.device)
        packed_masks = to_device(self._pack_masks(masks).to(self.dtype), self.device)
        texts = super().condition(inputs, max_sequence_length)
        self.residency.enter("vae")
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
        self, jobs: Sequence[Job], draws: Sequence[Draws], schedule: Schedule
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # The library's order: image posterior, noise, masked-image posterior.
        latents = noise_of(draws, 1, self.device)
        if schedule.first_sigma < 1.0:
            image_latents = self._image_latents(jobs, noise_of(draws, 0, self.device))
            latents = add_noise(schedule.scheduler, image_latents, latents, schedule.timesteps)
        masked_posteriors = torch.stack([job.conditioning.masked_posterior for job in jobs])
        masked_latents = self._sample(masked_posteriors, noise_of(draws, 2, self.device))
        masks = torch.stack([job.conditioning.mask for job in jobs])
        return pack(latents), torch.cat((pack(masked_latents), masks), dim=-1)

    def _image_latents(self, jobs: Sequence[Job], noise: torch.Tensor) -> torch.Tensor:
        """Latents of the whole images, where denoising starts from them and not from pure noise."""
        latents = []
        self.residency.enter("vae")
        for job, own_noise in zip(jobs, noise[:, None], strict=True):
            conditioning = job.conditioning
            pixels = _preprocess(
                self.pipeline.image_processor, [conditioning.image], conditioning.height, conditioning.width
            )
            pixels = to_device(pixels.to(self.dtype), self.device)
            latents.append(self._sample(self.vae.encode(pixels).latent_dist.parameters, own_noise))
        return torch.cat(latents)

    def _sample(self, parameters: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, H, W) from posteriors (B, 2 C, H, W) and noise, in FLUX's scaling."""
        posterior = DiagonalGaussianDistribution(parameters)
        latents = posterior.mean + posterior.std * noise
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor  # type: ignore[no-any-return]

    def _pack_masks(self, masks: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) to (B, image tokens, 4 * scale ** 2): every pixel of the mask becomes a channel of its token."""
        batch, _, height, width = masks.shape
        rows, columns = height // self.scale, width // self.scale
        cells = masks[:, 0].view(batch, rows, self.scale, columns, self.scale).permute(0, 2, 4, 1, 3)
        return pack(cells.reshape(batch, self.scale**2, rows, columns))


def _present(image: Image | None) -> Image:
    if image is None:
        raise SampleError("the sample has no image or no mask, and filling needs both: use a dataset that has them")
    return image


def _preprocess(processor: Any, images: list[Image], height: int, width: int) -> torch.Tensor:
    """Float32 (B, channels, H, W) on the CPU."""
    pixels: torch.Tensor = processor.preprocess(images, height=height, width=width)
    return pixels.to(torch.float32)
