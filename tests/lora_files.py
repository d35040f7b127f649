"""Makes small LoRA files of all formats, with the layers of the embedded models."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDTH = 160
CLIP_WIDTH = 96
RANK = 4
SIZE = 0.1
"""Standard deviation of all values: large enough to change images, small enough to keep them finite."""


def factors(
    generator: torch.Generator, inputs: int, outputs: int, rank: int = RANK
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, inputs) and B (outputs, rank)."""
    return tuple(SIZE * torch.randn(shape, generator=generator) for shape in ((rank, inputs), (outputs, rank)))  # type: ignore[return-value]


def save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return str(path)


def peft(path: Path, module: Any, seed: int = 0, *, only: str = "", prefix: str = "transformer") -> str:
    """All linear layers whose name contains `only`, each with a rank of its own (3, 4 or 5)."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for number, (name, layer) in enumerate(module.named_modules()):
        if isinstance(layer, torch.nn.Linear) and only in name:
            down, up = factors(generator, layer.in_features, layer.out_features, 3 + number % 3)
            tensors |= {f"{prefix}.{name}.lora_A.weight": down, f"{prefix}.{name}.lora_B.weight": up}
    return save(path, tensors)


def distilled(path: Path, transformer: Any, dtype: torch.dtype, rank: int = RANK) -> str:
    """The layout of the 8-step LoRAs for FLUX.1-dev: all linear layers, embedders and modulations included, with the
    names of PEFT, one rank, and no alphas. Hyper-FLUX.1-dev-8steps is stored in float32, FLUX.1-Turbo-Alpha in
    bfloat16.

    Args:
        path: of the file.
        transformer: of FLUX.1-dev; it may be on the meta device.
        dtype: of the file.
        rank: of all layers.
    """
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, torch.nn.Linear):
            down, up = factors(generator, layer.in_features, layer.out_features, rank)
            tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    return save(path, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def full_size_header(path: Path, shapes: Mapping[str, tuple[int, ...]], rank: int = 64) -> str:
    """A sparse file with the tensors of an 8-step LoRA at full size, which takes no space on the disk.

    Args:
        path: of the file.
        shapes: of all weights of the transformer.
        rank: of all layers.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) == 2:
            base = f"transformer.{name.removesuffix('.weight')}"
            for part, size in (("lora_A", (rank, shape[1])), ("lora_B", (shape[0], rank))):
                start, end = end, end + 2 * size[0] * size[1]
                header[f"{base}.{part}.weight"] = {"dtype": "BF16", "shape": size, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return str(path)


def peft_with(
    path: Path,
    seed: int = 0,
    *,
    alpha: float | None = None,
    bias: bool = False,
    more: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """Two layers with different ranks, and what else the format can have."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = dict(more or {})
    for name, rank in (("transformer_blocks.0.attn.to_q", 4), ("single_transformer_blocks.2.attn.to_k", 2)):
        down, up = factors(generator, WIDTH, WIDTH, rank)
        tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        if alpha is not None:
            tensors[f"transformer.{name}.alpha"] = torch.tensor(alpha)
        if bias:
            tensors[f"transformer.{name}.lora_B.bias"] = SIZE * torch.randn(WIDTH, generator=generator)
    return save(path, tensors)


KOHYA = {
    "lora_unet_double_blocks_0_img_attn_qkv": (WIDTH, 3 * WIDTH),
    "lora_unet_double_blocks_0_txt_attn_qkv": (WIDTH, 3 * WIDTH),
    "lora_unet_double_blocks_0_txt_attn_proj": (WIDTH, WIDTH),
    "lora_unet_double_blocks_0_img_mlp_0": (WIDTH, 4 * WIDTH),
    "lora_unet_double_blocks_0_img_mod_lin": (WIDTH, 6 * WIDTH),
    "lora_unet_single_blocks_3_linear2": (5 * WIDTH, WIDTH),
    "lora_unet_single_blocks_3_modulation_lin": (WIDTH, 3 * WIDTH),
}
KOHYA_TEXT = {
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (CLIP_WIDTH, CLIP_WIDTH),
    "lora_te1_text_model_encoder_layers_1_mlp_fc1": (CLIP_WIDTH, 2 * CLIP_WIDTH),
}


def kohya(path: Path, seed: int = 0, *, text: bool = False, alpha: float = 2.0) -> str:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inputs, outputs) in (KOHYA | (KOHYA_TEXT if text else {})).items():
        down, up = factors(generator, inputs, outputs)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
    return save(path, tensors)


def comfy(path: Path, seed: int = 0) -> str:
    """kohya's tensors under the names of ComfyUI."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name in ("double_blocks.0.img_attn.proj", "double_blocks.0.txt_attn.proj"):
        down, up = factors(generator, WIDTH, WIDTH)
        base = f"diffusion_model.{name}"
        tensors |= {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up, f"{base}.alpha": torch.tensor(4.0)}
    return save(path, tensors)


XLABS = {
    "double_blocks.0.processor.qkv_lora1": (WIDTH, 3 * WIDTH),
    "double_blocks.0.processor.proj_lora2": (WIDTH, WIDTH),
    "single_blocks.3.processor.qkv_lora": (WIDTH, 3 * WIDTH),
    "single_blocks.3.processor.proj_lora": (5 * WIDTH, WIDTH),
}


def xlabs(path: Path, seed: int = 0) -> str:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (inputs, outputs) in XLABS.items():
        down, up = factors(generator, inputs, outputs)
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return save(path, tensors)


def bfl_control(path: Path) -> str:
    """A Control LoRA of Black Forest Labs: all layers of FLUX.1 at rank 2. diffusers converts no other size."""
    width = 3072
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: int, outputs: int) -> None:
        tensors[f"{name}.lora_A.weight"] = torch.ones(2, inputs, dtype=torch.float16)
        tensors[f"{name}.lora_B.weight"] = torch.ones(outputs, 2, dtype=torch.float16)
        tensors[f"{name}.lora_B.bias"] = torch.ones(outputs, dtype=torch.float16)

    for number in range(19):
        block = f"double_blocks.{number}"
        for stream in ("img", "txt"):
            add(f"{block}.{stream}_mod.lin", width, 6 * width)
            add(f"{block}.{stream}_attn.qkv", width, 3 * width)
            add(f"{block}.{stream}_attn.proj", width, width)
            add(f"{block}.{stream}_mlp.0", width, 4 * width)
            add(f"{block}.{stream}_mlp.2", 4 * width, width)
            for part in ("query", "key"):
                tensors[f"{block}.{stream}_attn.norm.{part}_norm.scale"] = torch.ones(128, dtype=torch.float16)
    for number in range(38):
        block = f"single_blocks.{number}"
        add(f"{block}.modulation.lin", width, 3 * width)
        add(f"{block}.linear1", width, 7 * width)
        add(f"{block}.linear2", 5 * width, width)
        for part in ("query", "key"):
            tensors[f"{block}.norm.{part}_norm.scale"] = torch.ones(128, dtype=torch.float16)
    for name, inputs, outputs in (
        ("time_in.in_layer", 256, width),
        ("time_in.out_layer", width, width),
        ("vector_in.in_layer", 768, width),
        ("vector_in.out_layer", width, width),
        ("guidance_in.in_layer", 256, width),
        ("guidance_in.out_layer", width, width),
        ("txt_in", 4096, width),
        ("img_in", 128, width),
        ("final_layer.linear", width, 64),
        ("final_layer.adaLN_modulation.1", width, 2 * width),
    ):
        add(name, inputs, outputs)
    return save(path, tensors)
