"""Stage 2 trains both transformers on the flow from noise to latents, and the text encoders with them.

The input is x = (1 - sigma) * latents + sigma * noise. Given x and sigma, the network predicts noise - latents
(Esser et al. 2024, "Scaling Rectified Flow Transformers").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fluxexp.models.flux1.latents import pack, position_ids
from tools.train_tiny_fill.autoencoder import Posteriors
from tools.train_tiny_fill.progress import Log, mixed_precision, optimize, round_weights
from tools.train_tiny_fill.settings import Settings
from tools.train_tiny_fill.text import Captions, TextEncoders, join

TEACHER_GUIDANCE = 1.0
"""Input of the teachers' guidance embedding. It is constant, so it has no meaning for the teachers."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of noisy latents with their targets. Latents and masks are packed into tokens."""

    noisy: Tensor
    """Noisy latents, (B, image tokens, 64)."""
    target: Tensor
    """What the transformers should predict, noise - latents: (B, image tokens, 64)."""
    sigma: Tensor
    """Noise levels that the transformers get, (B,). See `partly_rounded`."""
    condition: Tensor
    """Further input of the Fill transformer: latents of the masked image, and the mask; (B, image tokens, 320)."""
    weight: Tensor
    """Weight of each token in the loss of the Fill transformer: (B, image tokens, 1), with mean 1."""


class Sampler:
    """Draws random batches from the training set."""

    def __init__(self, settings: Settings, posteriors: Posteriors, batch: int) -> None:
        self._settings = settings
        self._posteriors = posteriors
        self.device = posteriors.truths.device
        self._batch = batch

    def draw(self) -> tuple[Tensor, Batch]:
        """Indices of random scenes, and their batch."""
        rows = torch.randint(len(self._posteriors), (self._batch,), device=self.device)
        latents = pack(self._sample(self._posteriors.truths[rows]))
        masked = pack(self._sample(self._posteriors.masked[rows]))
        masks = self._posteriors.masks[rows].float()
        noise = torch.randn_like(latents)
        sigma = self._sigmas(len(rows))
        level = sigma[:, None, None]
        weight = 1 + (self._settings.hole_weight - 1) * masks.amax(dim=2, keepdim=True)
        batch = Batch(
            noisy=(1 - level) * latents + level * noise,
            target=noise - latents,
            sigma=partly_rounded(sigma),
            condition=torch.cat([masked, masks], dim=2),
            weight=weight / weight.mean(),
        )
        return rows, batch

    def _sample(self, posteriors: Tensor) -> Tensor:
        mean, deviation = posteriors.float().chunk(2, dim=1)
        return mean + deviation * torch.randn_like(mean)

    def _sigmas(self, count: int) -> Tensor:
        """Random noise levels after the timestep shift: 70 % logit-normal, and 30 % uniform to cover both ends."""
        uniform = torch.rand(2, count, device=self.device)
        normal = torch.randn(count, device=self.device).sigmoid()
        level = torch.where(uniform[0] < 0.3, uniform[1], normal)
        shift = self._settings.shift
        return shift * level / (1 + (shift - 1) * level)


def train_flow(
    settings: Settings,
    text: TextEncoders,
    transformers: dict[str, Any],
    posteriors: Posteriors,
    captions: Captions,
    log: Log,
) -> None:
    """Train the teachers `fill` and `dev` and their shared text encoders. Then round the encoders to bfloat16."""
    stage = settings.flow
    sampler = Sampler(settings, posteriors, stage.batch)

    def losses() -> dict[str, Tensor]:
        rows, batch = sampler.draw()
        fill_prompts = captions.fill(rows, settings.prompt_dropout)
        dev_prompts = captions.dev(rows, settings.prompt_dropout)
        guidance = torch.full_like(batch.sigma, TEACHER_GUIDANCE)
        with mixed_precision(sampler.device):
            prompts, pooled = text(join(fill_prompts, dev_prompts))
            half = len(rows)
            fill = velocity(transformers["fill"], batch, guidance, prompts[:half], pooled[:half], filling=True)
            dev = velocity(transformers["dev"], batch, guidance, prompts[half:], pooled[half:], filling=False)
        return {
            "fill": (batch.weight * (fill - batch.target).square()).mean(),
            "dev": (dev - batch.target).square().mean(),
        }

    for module in (text, *transformers.values()):
        module.train()
    optimize("flow", stage, [text, *transformers.values()], losses, log)
    round_weights(text)


def velocity(
    transformer: Any, batch: Batch, guidance: Tensor, prompts: Tensor, pooled: Tensor, *, filling: bool
) -> Tensor:
    """The prediction of `transformer` for a batch: float32 (B, image tokens, 64).

    `filling`: whether it is a Fill transformer, which also gets `batch.condition`.
    """
    side = math.isqrt(batch.noisy.shape[1])
    device = batch.noisy.device
    hidden = torch.cat([batch.noisy, batch.condition], dim=2) if filling else batch.noisy
    predicted: Tensor = transformer(
        hidden_states=hidden,
        timestep=batch.sigma,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=prompts,
        txt_ids=torch.zeros(prompts.shape[1], 3, device=device),
        img_ids=_image_ids(side, device),
        return_dict=False,
    )[0]
    return predicted.float()


@lru_cache
def _image_ids(side: int, device: torch.device) -> Tensor:
    return position_ids(side, side).to(device)


def prepare(transformer: Any, compiled: bool) -> None:
    """Keep the residual stream in float32 under autocast, and compile the blocks if `compiled`.

    The transformer casts sigma and guidance to the dtype of its input layer's output. So they stay in float32, too.
    """
    for embedder in (transformer.x_embedder, transformer.context_embedder):
        embedder.register_forward_hook(_to_float32)
    if compiled:
        transformer.compile_repeated_blocks(fullgraph=True)


def _to_float32(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def partly_rounded(values: Tensor) -> Tensor:
    """Sigmas or guidances. A random half is rounded as a bfloat16 transformer rounds them.

    This makes the model accurate for inference in float32 and in bfloat16.
    """
    rounded = ((values.bfloat16() * 1000).float() / 1000).to(values.dtype)
    return torch.where(torch.rand_like(values) < 0.5, rounded, values)


def empty_prompts(text: TextEncoders, captions: Captions, count: int) -> tuple[Tensor, Tensor]:
    """The encoded empty prompt, `count` times."""
    prompts, pooled = text(captions.empty(1))
    return prompts.expand(count, -1, -1), pooled.expand(count, -1)
