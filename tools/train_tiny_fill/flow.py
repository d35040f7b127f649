"""Stage 2: both transformers learn the flow from noise to latents, and the text encoders with them.

x = (1 - sigma) * latents + sigma * noise; the network is told sigma and predicts noise - latents
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
from tools.train_tiny_fill.progress import Log, mixed_precision, optimise, round_weights
from tools.train_tiny_fill.settings import Settings
from tools.train_tiny_fill.text import Captions, TextEncoders, join

TEACHER_GUIDANCE = 1.0
"""What the teachers' guidance embedding is fed: always the same, so it means nothing to them."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on its way from latents to noise. Tokens are packed."""

    noisy: Tensor
    """(B, image tokens, 64)."""
    target: Tensor
    sigma: Tensor
    """(B,), as the network is told: half of them rounded as bfloat16 rounds them."""
    condition: Tensor
    """What filling sees besides: latents of the masked image, mask; (B, image tokens, 320)."""
    weight: Tensor
    """Of each token in the loss of filling: (B, image tokens, 1), 1 on average."""


class Sampler:
    """Draws batches from the training set."""

    def __init__(self, settings: Settings, posteriors: Posteriors, batch: int) -> None:
        self._settings = settings
        self._posteriors = posteriors
        self.device = posteriors.truths.device
        self._batch = batch

    def draw(self) -> tuple[Tensor, Batch]:
        """Rows of the training set, and their batch."""
        rows = torch.randint(len(self._posteriors), (self._batch,), device=self.device)
        latents = pack(self._sample(self._posteriors.truths[rows]))
        masked = pack(self._sample(self._posteriors.masked[rows]))
        masks = self._posteriors.masks[rows].float()
        noise = torch.randn_like(latents)
        sigma = self._sigmas(len(rows))
        share = sigma[:, None, None]
        weight = 1 + (self._settings.hole_weight - 1) * masks.amax(dim=2, keepdim=True)
        batch = Batch(
            noisy=(1 - share) * latents + share * noise,
            target=noise - latents,
            sigma=as_told(sigma),
            condition=torch.cat([masked, masks], dim=2),
            weight=weight / weight.mean(),
        )
        return rows, batch

    def _sample(self, posteriors: Tensor) -> Tensor:
        mean, deviation = posteriors.float().chunk(2, dim=1)
        return mean + deviation * torch.randn_like(mean)

    def _sigmas(self, count: int) -> Tensor:
        """Noise levels: mostly logit-normal, some uniform so that the ends are seen; both shifted."""
        draws = torch.rand(2, count, device=self.device)
        normal = torch.randn(count, device=self.device).sigmoid()
        level = torch.where(draws[0] < 0.3, draws[1], normal)
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
    """Train the teachers `fill` and `dev` and the text encoders, which both share; the encoders are then rounded."""
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
    optimise("flow", stage, [text, *transformers.values()], losses, log)
    round_weights(text)


def velocity(
    transformer: Any, batch: Batch, guidance: Tensor, prompts: Tensor, pooled: Tensor, *, filling: bool
) -> Tensor:
    """What `transformer` predicts for a batch: float32 (B, image tokens, 64)."""
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
    """Keep the residual stream in float32 under autocast, too, and compile the blocks.

    The transformer rounds sigma and guidance to the dtype that its input layer gives.
    """
    for embedder in (transformer.x_embedder, transformer.context_embedder):
        embedder.register_forward_hook(_to_float32)
    if compiled:
        transformer.compile_repeated_blocks(fullgraph=True)


def _to_float32(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def as_told(values: Tensor) -> Tensor:
    """Sigmas or guidances of which half are what a transformer in bfloat16 makes of them, so that it, too, can."""
    rounded = ((values.bfloat16() * 1000).float() / 1000).to(values.dtype)
    return torch.where(torch.rand_like(values) < 0.5, rounded, values)


def empty_prompts(text: TextEncoders, captions: Captions, count: int) -> tuple[Tensor, Tensor]:
    """The empty prompt, encoded, `count` times."""
    prompts, pooled = text(captions.empty(1))
    return prompts.expand(count, -1, -1), pooled.expand(count, -1)
