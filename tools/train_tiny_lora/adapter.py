"""Adds a LoRA to a transformer with PEFT, and writes it as diffusers does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from fluxexp.models.loading.widening import widen_input
from tools.train_tiny_lora.settings import LoraSettings

_INPUT = "x_embedder"
_LAYERS = re.compile(
    r"(single_)?transformer_blocks\.\d+\."
    r"(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
"""The linear layers of the blocks, except for the modulation."""


def add_adapter(transformer: Any, settings: LoraSettings) -> None:
    """Add a LoRA to the layers of the blocks, and to the input layer if `input_rank` is not 0. Freeze all else.

    A Control LoRA needs an input layer for the control image's channels, too. They start with weights of 0, as in
    diffusers.
    """
    from peft import LoraConfig

    if settings.style is None:
        widen_input(transformer, "flux_control")
    targets = [name for name, _ in transformer.named_modules() if _LAYERS.fullmatch(name)]
    ranks = {}
    if settings.input_rank:
        targets.append(_INPUT)
        ranks[_INPUT] = settings.input_rank
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(
            r=settings.rank, lora_alpha=settings.rank, rank_pattern=ranks, alpha_pattern=ranks, target_modules=targets
        )
    )


def save_adapter(transformer: Any, file: Path) -> None:
    """Write the LoRA in bfloat16, in the format of diffusers."""
    from diffusers import FluxPipeline
    from peft.utils import get_peft_model_state_dict

    state = {name: value.to("cpu", torch.bfloat16) for name, value in get_peft_model_state_dict(transformer).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    FluxPipeline.save_lora_weights(file.parent, transformer_lora_layers=state, weight_name=file.name)
