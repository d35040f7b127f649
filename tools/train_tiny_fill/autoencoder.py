"""Stage 1 trains the autoencoder, and encodes the training set with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxexp.models.flux1.latents import pack
from tools.train_tiny_fill.architecture import VAE_SCALE
from tools.train_tiny_fill.progress import Log, mixed_precision, optimize, round_weights
from tools.train_tiny_fill.scenes import Drawing, Scenes
from tools.train_tiny_fill.settings import Settings


class Pictures:
    """The scenes on the device, as inputs of the networks."""

    def __init__(self, scenes: Scenes, device: torch.device) -> None:
        self._truths = torch.from_numpy(scenes.truths).to(device)
        self._masks = torch.from_numpy(scenes.masks).to(device)
        self._bits = 2 ** torch.arange(7, -1, -1, device=device, dtype=torch.uint8)
        self._size = scenes.truths.shape[1]
        self.device = device

    def __len__(self) -> int:
        return len(self._truths)

    def truths(self, rows: Tensor) -> Tensor:
        """Scenes without masks: float32 (B, 3, H, W) in [-1, 1]."""
        pixels = self._truths[rows].permute(0, 3, 1, 2)
        return pixels.float() / 127.5 - 1

    def masks(self, rows: Tensor) -> Tensor:
        """Masks: float32 (B, 1, H, W), 1 in the masked region."""
        bits = (self._masks[rows][..., None] & self._bits) > 0
        return bits.view(len(rows), 1, self._size, self._size).float()


@dataclass(frozen=True, slots=True)
class Posteriors:
    """Encoded scenes.

    `truths` and `masked` are means and standard deviations of latents after scale and shift: float16
    (N, 2 * latent channels, H / 8, W / 8).
    """

    truths: Tensor
    """Of the scenes without masks."""
    masked: Tensor
    """Of the scenes with the masked region set to 0."""
    masks: Tensor
    """Packed masks, (N, image tokens, 256) as uint8."""

    def __len__(self) -> int:
        return len(self.truths)


def train_autoencoder(settings: Settings, vae: Any, drawing: Drawing, log: Log) -> None:
    """Train `vae` to reconstruct scenes with and without masked regions. The edge loss keeps outlines sharp."""
    stage = settings.vae
    pictures = Pictures(drawing.first(settings.vae_scenes), vae.device)

    def losses() -> dict[str, Tensor]:
        rows = torch.randint(len(pictures), (stage.batch,), device=pictures.device)
        images = _augment(pictures.truths(rows), pictures.masks(rows))
        images = images.contiguous(memory_format=torch.channels_last)
        with mixed_precision(pictures.device):
            mean, log_variance = vae.encoder(images).float().chunk(2, dim=1)
            log_variance = log_variance.clamp(-30, 20)
            latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            restored = vae.decoder(latents).float()
        error = restored - images
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return {
            "l1": error.abs().mean(),
            "edge": settings.edge * _slopes(error),
            "kl": settings.kl * kl,
            "_psnr": 10 * torch.log10(4 / error.square().mean()),
        }

    vae.to(memory_format=torch.channels_last).train()
    optimize("vae", stage, [vae], losses, log)
    vae.eval()
    round_weights(vae)
    _set_scaling(vae, pictures)


@torch.no_grad()
def encode_scenes(vae: Any, scenes: Scenes) -> Posteriors:
    """Posteriors of all scenes with and without masked regions. The transformers train on these."""
    pictures = Pictures(scenes, vae.device)
    parts: list[list[Tensor]] = [[], [], []]
    for rows in torch.split(torch.arange(len(pictures), device=pictures.device), 512):
        truths, masks = pictures.truths(rows), pictures.masks(rows)
        parts[0].append(posterior(vae, truths))
        parts[1].append(posterior(vae, truths * (1 - masks)))
        parts[2].append(pack_masks(masks).to(torch.uint8))
    return Posteriors(*(torch.cat(part) for part in parts))


def pack_masks(masks: Tensor) -> Tensor:
    """Pack masks (B, 1, H, W) to (B, image tokens, 256), like the Fill pipeline."""
    batch, _, height, width = masks.shape
    rows, columns = height // VAE_SCALE, width // VAE_SCALE
    cells = masks[:, 0].view(batch, rows, VAE_SCALE, columns, VAE_SCALE).permute(0, 2, 4, 1, 3)
    return pack(cells.reshape(batch, VAE_SCALE**2, rows, columns))


def posterior(vae: Any, images: Tensor) -> Tensor:
    """Means and standard deviations of latents after scale and shift: float16 (B, 2 * channels, H / 8, W / 8)."""
    with mixed_precision(images.device):
        mean, log_variance = vae.encoder(images).float().chunk(2, dim=1)
    scale = vae.config.scaling_factor
    deviation = torch.exp(0.5 * log_variance.clamp(-30, 20)) * scale
    return torch.cat([(mean - vae.config.shift_factor) * scale, deviation], dim=1).half()


@torch.no_grad()
def _set_scaling(vae: Any, pictures: Pictures) -> None:
    """Set the scale and shift that give latents of unmasked scenes mean 0 and standard deviation 1."""
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    rows = torch.arange(min(len(pictures), 4096), device=pictures.device)
    parts = torch.cat([posterior(vae, pictures.truths(part)) for part in torch.split(rows, 512)]).float()
    mean, deviation = parts.chunk(2, dim=1)
    variance = mean.var() + deviation.square().mean()
    vae.register_to_config(scaling_factor=round(float(variance.rsqrt()), 4), shift_factor=round(float(mean.mean()), 4))


def _augment(images: Tensor, masks: Tensor) -> Tensor:
    """Augment images: mask 25 %, mirror 50 %, invert the colors of 10 %, and rotate the color channels of 10 %."""
    uniform = torch.rand(4, len(images), 1, 1, 1, device=images.device)
    images = torch.where(uniform[0] < 0.25, images * (1 - masks), images)
    images = torch.where(uniform[1] < 0.5, images.flip(3), images)
    images = torch.where(uniform[2] < 0.1, -images, images)
    return torch.where(uniform[3] < 0.1, images.roll(1, dims=1), images)


def _slopes(error: Tensor) -> Tensor:
    """Mean absolute error of the differences between pixels at distances 1 and 2, vertically and horizontally."""
    parts = [(error - error.roll(step, dims=axis)).abs().mean() for step in (1, 2) for axis in (2, 3)]
    return 0.25 * torch.stack(parts).sum()
