"""Builds a FLUX pipeline of any layout with seeded random weights, on the device it will run on, without a download.

Speed, memory and code paths do not depend on the values of the weights. Parameters are allocated and drawn on the
device, so twelve billion of them take seconds. The same seed gives the same weights on the same kind of device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.models import FluxControlNetModel, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from fluxexp.config.families import Family
from fluxexp.config.model_layouts import ModelLayout
from fluxexp.models.loading.deprecations import own_deprecations_hidden

_STD = 0.02
_CHARACTERS = [chr(code) for code in range(33, 127)]


def random_pipeline(
    layout: ModelLayout,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    family: Family | None = None,
    controlnet: Mapping[str, Any] | None = None,
) -> DiffusionPipeline:
    """Build a pipeline of `layout` with random weights in `dtype` on `device`.

    The tokenizers know single characters, so any text has tokens within the vocabulary, up to the layout's length.

    Args:
        layout: configs of all components.
        device: where the weights are drawn and kept.
        dtype: of all weights.
        seed: of the weights.
        family: whose pipeline class to use; None for the first family that the layout fits.
        controlnet: config of the ControlNet; None if the family has none.
    """
    pipeline = pipeline_without_weights(layout, dtype, family, controlnet)
    draw_weights(pipeline, device, device, seed)
    return pipeline


def pipeline_without_weights(
    layout: ModelLayout,
    dtype: torch.dtype,
    family: Family | None = None,
    controlnet: Mapping[str, Any] | None = None,
) -> DiffusionPipeline:
    """Build the same pipeline on PyTorch's meta device: its weights have sizes but take no memory."""
    pipeline_class = getattr(diffusers, str((family or layout.family).pipeline))
    clip_vocabulary = _clip_vocabulary()
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    pipeline: DiffusionPipeline = pipeline_class(
        scheduler=FlowMatchEulerDiscreteScheduler(**layout.scheduler),
        text_encoder=on_meta(lambda: CLIPTextModel(CLIPTextConfig(**layout.clip, **special)), dtype),
        tokenizer=CLIPTokenizer(vocab=clip_vocabulary, merges=[], model_max_length=77),
        text_encoder_2=on_meta(lambda: T5EncoderModel(T5Config(**layout.t5)), dtype),
        tokenizer_2=T5Tokenizer(vocab=_t5_vocabulary(), extra_ids=0, model_max_length=layout.text_tokens),
        vae=on_meta(lambda: AutoencoderKL(**layout.vae), dtype),
        transformer=on_meta(lambda: FluxTransformer2DModel(**layout.transformer), dtype),
        **({} if controlnet is None else {"controlnet": on_meta(lambda: FluxControlNetModel(**controlnet), dtype)}),
    )
    return pipeline


def on_meta(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> Any:
    """A module on PyTorch's meta device: its weights have sizes but take no memory."""
    with torch.device("meta"), own_deprecations_hidden():
        return make().to(dtype).eval()


def draw_weights(pipeline: Any, device: torch.device, home: torch.device, seed: int = 0) -> None:
    """Fill a pipeline without weights with random ones, drawn on `device` and kept on `home`."""
    generator = torch.Generator(device).manual_seed(seed)
    names = ("text_encoder", "text_encoder_2", "vae", "transformer", "controlnet", "image_encoder")
    for part in (getattr(pipeline, name, None) for name in names):
        if part is not None:
            draw_module(part, generator, home)


def draw_module(module: Any, generator: torch.Generator, home: torch.device) -> None:
    """Fill a module without weights with random ones, from `generator` on its device, and keep them on `home`."""
    _draw(module.to_empty(device=home), generator)
    if hasattr(module, "tie_weights"):
        module.tie_weights()  # `to_empty` unties them


@torch.no_grad()
def _draw(module: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Set matrices and convolutions to normal noise, norms to 1, biases to 0, and position ids to 0, 1, ..."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and parameter.device == generator.device:
            parameter.normal_(0.0, _STD, generator=generator)
        elif parameter.ndim >= 2:
            drawn = torch.empty_like(parameter, device=generator.device)
            parameter.copy_(drawn.normal_(0.0, _STD, generator=generator))
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    for name, buffer in module.named_buffers():
        if not name.endswith("position_ids"):
            raise ValueError(f"{type(module).__name__} has a buffer with unknown content: {name}")
        buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module


def _clip_vocabulary() -> dict[str, int]:
    words = ["<|startoftext|>", "<|endoftext|>", *_CHARACTERS, *(f"{character}</w>" for character in _CHARACTERS)]
    return {word: index for index, word in enumerate(words)}


def _t5_vocabulary() -> list[tuple[str, float]]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return special + [(character, -3.0) for character in _CHARACTERS]
