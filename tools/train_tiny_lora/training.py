"""Trains a LoRA on the flow from noise to latents, with the loss of the models that it changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxexp.config.model_paths import EMBEDDED, model_directory
from fluxexp.data.shapes.outline import outlines
from tools.train_tiny_fill.architecture import TOKEN_CHANNELS
from tools.train_tiny_fill.autoencoder import Posteriors, encode_scenes, posterior
from tools.train_tiny_fill.flow import Batch, Sampler, prepare, velocity
from tools.train_tiny_fill.progress import Log, mixed_precision, optimize
from tools.train_tiny_fill.scenes import Drawing, Scenes
from tools.train_tiny_fill.settings import FULL
from tools.train_tiny_fill.text import Captions, TextEncoders, freeze
from tools.train_tiny_lora.adapter import add_adapter
from tools.train_tiny_lora.settings import LoraSettings


def train_lora(settings: LoraSettings, workers: int, device: torch.device, log: Log) -> Any:
    """Return the transformer of the base model with a trained LoRA."""
    drawing = Drawing(settings.seed, settings.scenes, settings.size, workers, settings.style)
    try:
        vae, text, transformer = _load(settings.base, device)
        scenes = drawing.all()
        posteriors = encode_scenes(vae, scenes) if settings.style else _encode_with_outlines(vae, scenes)
    finally:
        drawing.close()
    log.write("scenes", count=len(scenes))
    torch.manual_seed(settings.seed)
    add_adapter(transformer.to(device), settings)
    prepare(transformer, compiled=False)
    log.write("sizes", lora=sum(value.numel() for value in transformer.parameters() if value.requires_grad))
    _optimize(settings, text, transformer, posteriors, Captions(scenes, device), log)
    return transformer


def _load(name: str, device: torch.device) -> tuple[Any, TextEncoders, Any]:
    """VAE, text encoders and transformer of an embedded model, in float32."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model_directory(f"{EMBEDDED}{name}"), dtype=torch.float32)
    text = TextEncoders()
    text.clip, text.t5 = pipeline.text_encoder, pipeline.text_encoder_2
    return freeze(pipeline.vae.to(device)), freeze(text.to(device)), pipeline.transformer.train()


@torch.no_grad()
def _encode_with_outlines(vae: Any, scenes: Scenes) -> Posteriors:
    """Encode scenes and their outlines, which take the place of the masked images. All masks are empty."""
    lines = np.stack([outlines(truth) for truth in scenes.truths])
    truths, controls = (_encode(vae, pictures) for pictures in (scenes.truths, lines))
    masks = torch.zeros(len(scenes), (scenes.truths.shape[1] // 16) ** 2, 256, dtype=torch.uint8, device=vae.device)
    return Posteriors(truths, controls, masks)


def _encode(vae: Any, pictures: NDArray[np.uint8]) -> Tensor:
    parts = []
    for first in range(0, len(pictures), 512):
        pixels = torch.from_numpy(pictures[first : first + 512]).to(vae.device).permute(0, 3, 1, 2)
        parts.append(posterior(vae, pixels.float() / 127.5 - 1))
    return torch.cat(parts)


def _optimize(
    settings: LoraSettings, text: TextEncoders, transformer: Any, posteriors: Posteriors, captions: Captions, log: Log
) -> None:
    # Only `shift` and `hole_weight` of these settings count: they are those of the base models.
    sampler = Sampler(FULL, posteriors, settings.stage.batch)
    draw_captions = captions.dev if settings.style is None else captions.fill

    def losses() -> dict[str, Tensor]:
        rows, batch = sampler.draw()
        if settings.style is None:
            batch = _with_control(batch)
        guidance = torch.full_like(batch.sigma, settings.guidance)
        with mixed_precision(sampler.device):
            with torch.no_grad():
                prompts, pooled = text(draw_captions(rows, settings.prompt_dropout))
            predicted = velocity(transformer, batch, guidance, prompts, pooled, filling=True)
        return {"loss": (batch.weight * (predicted - batch.target).square()).mean()}

    optimize("lora", settings.stage, [transformer], losses, log)


def _with_control(batch: Batch) -> Batch:
    """The batch of a Control model: the latents of the control image are its further input, and all tokens count."""
    return dataclasses.replace(
        batch, condition=batch.condition[:, :, :TOKEN_CHANNELS], weight=torch.ones_like(batch.weight)
    )
