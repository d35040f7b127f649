"""Writes LoRA files of random values for a layout: all linear layers of the transformer's blocks, in PEFT's format."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from fluxexp.config.families import Family
from fluxexp.config.model_layouts import ModelLayout
from fluxexp.models.loading.random_weights import pipeline_without_weights

_STD = 0.02


def write_lora(path: Path, layout: ModelLayout, family: Family, rank: int, seed: int) -> str:
    """Write a LoRA in bfloat16, as most files are. Returns its path."""
    pipeline = pipeline_without_weights(layout, torch.bfloat16, family)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in pipeline.transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and "transformer_blocks" in name:
            for part, shape in (("lora_A", (rank, layer.in_features)), ("lora_B", (layer.out_features, rank))):
                drawn = _STD * torch.randn(shape, generator=generator)
                tensors[f"transformer.{name}.{part}.weight"] = drawn.bfloat16()
    save_file(tensors, path)
    return str(path)
