"""From pictures of the working size to pixels and latents on the device, with the bits of diffusers' own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from fluxexp.models.flux1.latents import to_device


class PixelTable:
    """Turns pictures of one mode into pixel values by a lookup on the device.

    An image processor maps each of the 256 levels to one float. The lookup gives the same bits as its arithmetic, which
    takes a CPU about 40 ms for one picture.
    """

    def __init__(self, processor: Any, mode: str, device: torch.device) -> None:
        height = processor.config.vae_scale_factor
        ramp = Image.frombytes("L", (256, height), bytes(range(256)) * height).convert(mode)
        levels: torch.Tensor = processor.preprocess([ramp], height=height, width=256)[0, 0, 0]
        self._levels = levels.to(torch.float32).to(device)

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pixels of images of one size: float32 (B, channels, H, W) on the device, in diffusers' memory layout."""
        device = self._levels.device
        pixels = to_device(torch.from_numpy(np.stack([np.asarray(image) for image in images])), device)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        return self._levels[pixels.long()].permute(0, 3, 1, 2)


class ImageEncoder:
    """The VAE's encoder: from pixels to posteriors, and from posteriors to latents."""

    def __init__(self, vae: Any, dtype: torch.dtype, enter_vae: Callable[[], None]) -> None:
        """Wrap `vae`.

        Args:
            vae: AutoencoderKL.
            dtype: of the pixels that it takes.
            enter_vae: loads the weights of the VAE to the device if they are streamed.
        """
        self._vae = vae
        self.dtype = dtype
        self._enter_vae = enter_vae

    def posterior(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mean and log variance of the latents: (B, 2 * latent channels, H / scale, W / scale).

        Args:
            pixels: (B, 3, H, W) in [-1, 1], of the encoder's dtype.
        """
        self._enter_vae()
        parameters: torch.Tensor = self._vae.encode(pixels).latent_dist.parameters
        return parameters

    def sample(self, parameters: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, H, W) from posteriors (B, 2 C, H, W) and noise, shifted and scaled as FLUX does it."""
        posterior = DiagonalGaussianDistribution(parameters)
        return self._scaled(posterior.mean + posterior.std * noise)

    def mode(self, parameters: torch.Tensor) -> torch.Tensor:
        """The most probable latents (B, C, H, W) of posteriors (B, 2 C, H, W), shifted and scaled as FLUX does it."""
        return self._scaled(DiagonalGaussianDistribution(parameters).mode())

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self._vae.config.shift_factor) * self._vae.config.scaling_factor  # type: ignore[no-any-return]
