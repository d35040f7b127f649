"""Where the tensors of diffusers' modules are in files of Black Forest Labs' layout. Never imports torch.

Most programs, among them ComfyUI, use that layout (https://github.com/black-forest-labs/flux, `model.py` and
`modules/autoencoder.py`). It stores queries, keys and values as the rows of one tensor. The tests compare these tables
with the converters of diffusers. Those cannot be used here: they import torch, load whole files, and know only the
width of FLUX.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fluxexp.config.weight_headers import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The rows of a stored tensor that are one tensor of a module."""

    source: str
    """Name of the stored tensor."""
    start: int = 0
    rows: int | None = None
    """Number of rows from `start` on. None: the whole tensor."""
    swaps_halves: bool = False
    """Whether the second half of the rows comes first: shift and scale of the last norm have another order."""
    is_convolution: bool = False
    """Whether a matrix is stored as a convolution with a kernel of one pixel: (rows, columns, 1, 1)."""


_FLUX_TOP: Mapping[str, str] = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_DOUBLE: Mapping[str, str] = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_SINGLE: Mapping[str, str] = {
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
    "proj_out": "linear2",
}
_PART: Mapping[str, int] = {
    "attn.to_q": 0,
    "attn.to_k": 1,
    "attn.to_v": 2,
    "proj_mlp": 3,
    "attn.add_q_proj": 0,
    "attn.add_k_proj": 1,
    "attn.add_v_proj": 2,
}
"""Place of a layer in the stored tensor, in multiples of the model's width."""
_BLOCKS = {"transformer_blocks": ("double_blocks", _DOUBLE), "single_transformer_blocks": ("single_blocks", _SINGLE)}
_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")


def flux_pieces(layout: Shapes) -> Mapping[str, Piece]:
    """Return the piece of each tensor of a FLUX transformer whose tensors are `layout`."""
    width = layout["x_embedder.bias"][0]
    return {name: _flux_piece(name, shape[0], width) for name, shape in layout.items()}


def _flux_piece(name: str, rows: int, width: int) -> Piece:
    layer, _, kind = name.rpartition(".")
    block = _BLOCK.fullmatch(layer)
    if block is None:
        return Piece(source=f"{_FLUX_TOP[layer]}.{kind}", swaps_halves=layer == "norm_out.linear")
    stored_block, names = _BLOCKS[block[1]]
    source = f"{stored_block}.{block[2]}.{names[block[3]]}"
    if source.endswith("_norm"):
        return Piece(source=f"{source}.scale")
    part = _PART.get(block[3])
    if part is None:
        return Piece(source=f"{source}.{kind}")
    return Piece(source=f"{source}.{kind}", start=part * width, rows=rows)


_VAE_ENDS: Mapping[str, str] = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
}
_VAE_LAYERS: Mapping[str, str] = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_VAE_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(mid_block\.(?:resnets|attentions)\.\d)\.(.+)")


def vae_pieces(layout: Shapes) -> Mapping[str, Piece]:
    """Return the piece of each tensor of a VAE whose tensors are `layout`."""
    stages = 1 + max(int(found[2]) for name in layout if (found := _VAE_BLOCK.search(name)))
    return {name: _vae_piece(name, stages, is_matrix=len(shape) == 2) for name, shape in layout.items()}


def _vae_piece(name: str, stages: int, *, is_matrix: bool) -> Piece:
    whole, _, kind = name.rpartition(".")
    half, _, rest = whole.partition(".")
    if block := _VAE_BLOCK.fullmatch(rest):
        # The decoder's stages are counted from the finest one on, so in the other direction.
        number = int(block[2]) if block[1] == "down" else stages - 1 - int(block[2])
        layer = _VAE_LAYERS.get(block[5], block[5])
        inner = f"block.{block[4]}.{layer}" if block[3] == "resnets" else f"{block[1]}sample.{layer}"
        rest = f"{block[1]}.{number}.{inner}"
    elif middle := _VAE_MIDDLE.fullmatch(rest):
        rest = f"{_VAE_ENDS[middle[1]]}.{_VAE_LAYERS.get(middle[2], middle[2])}"
    else:
        rest = _VAE_ENDS.get(rest, rest)
    return Piece(source=".".join(filter(None, (half, rest, kind))), is_convolution=is_matrix)
