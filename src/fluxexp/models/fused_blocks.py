"""FLUX's blocks by fused operations (`fused_ops.py`): the library's layers and arithmetic in fewer passes over memory.

A norm adds the update of the block before while it reads the stream; queries and keys are normed, turned and put among
those of the other stream in one pass; GELU is inside the matrix product before it, or makes the eight-bit rows that
the one behind it takes; the single blocks' last product is of attention and MLP apart, without a copy of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.blocks import Attend, Rope
from fluxexp.models.fp8 import Fp8Linear
from fluxexp.models.fused_ops import (
    Activations,
    Quantised,
    Residual,
    linear_gelu,
    modulated_norm,
    place_heads,
    quantised_rows,
)

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values (B, tokens, heads, head dimension)."""


class FusedDoubleBlock:
    """A `FluxTransformerBlock`."""

    def __init__(self, block: Any, attend: Attend) -> None:
        self._block = block
        self._attend = attend

    def __call__(
        self, image: Residual, text: Residual, image_mod: torch.Tensor, text_mod: torch.Tensor, rope: Rope
    ) -> tuple[Residual, Residual]:
        """One block; arguments as of `DoubleBlock`."""
        block, attn = self._block, self._block.attn
        image_parts, text_parts = image_mod.chunk(6, dim=1), text_mod.chunk(6, dim=1)
        image_tokens, image_normed = _normed(block.norm1.norm, image, image_parts[:2], attn.to_q)
        text_tokens, text_normed = _normed(block.norm1_context.norm, text, text_parts[:2], attn.add_q_proj)
        batch, length, _ = text_tokens.shape
        shape = (batch, length + image_tokens.shape[1], attn.heads, attn.head_dim)
        joint: Heads = tuple(text_tokens.new_empty(shape) for _ in range(3))  # type: ignore[assignment]
        text_heads = _projected((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), text_normed)
        place_heads(text_heads, (attn.norm_added_q.weight, attn.norm_added_k.weight), rope, joint, 0, attn.norm_q.eps)
        image_heads = _projected((attn.to_q, attn.to_k, attn.to_v), image_normed)
        place_heads(image_heads, (attn.norm_q.weight, attn.norm_k.weight), rope, joint, length, attn.norm_q.eps)
        attended = self._attend(*joint).flatten(2, 3)
        image_update = _product(attn.to_out[0], attended[:, length:])
        text_update = _product(attn.to_add_out, attended[:, :length])
        image = Residual(image_tokens, (image_update,), image_parts[2])
        text = Residual(text_tokens, (text_update,), text_parts[2])
        return (
            _mlp(block.norm2, block.ff, image, image_parts[3:]),
            _mlp(block.norm2_context, block.ff_context, text, text_parts[3:]),
        )


class FusedSingleBlock:
    """A `FluxSingleTransformerBlock`."""

    def __init__(self, block: Any, attend: Attend) -> None:
        self._block = block
        self._attend = attend

    def __call__(self, stream: Residual, mod: torch.Tensor, rope: Rope) -> Residual:
        """One block; arguments as of `SingleBlock`."""
        block, attn = self._block, self._block.attn
        shift, scale, gate = mod.chunk(3, dim=1)
        tokens, normed = _normed(block.norm.norm, stream, (shift, scale), attn.to_q)
        heads = _projected((attn.to_q, attn.to_k, attn.to_v), normed)
        places: Heads = tuple(x.view(*x.shape[:2], attn.heads, attn.head_dim) for x in heads)  # type: ignore[assignment]
        place_heads(heads, (attn.norm_q.weight, attn.norm_k.weight), rope, places, 0, attn.norm_q.eps)
        attended = self._attend(*places).flatten(2, 3)
        return Residual(tokens, _contracted(block, attended, normed), gate)


def _normed(
    norm: Any, stream: Residual, parts: Sequence[torch.Tensor], reader: torch.nn.Module
) -> tuple[torch.Tensor, Activations]:
    """The settled stream, and its norm modulated by shift and scale, as `reader` takes it."""
    shift, scale = parts
    return modulated_norm(stream, shift, scale, norm.eps, is_quantised=isinstance(reader, Fp8Linear))


def _mlp(norm: Any, layers: Any, stream: Residual, parts: Sequence[torch.Tensor]) -> Residual:
    expand, contract = layers.net[0].proj, layers.net[2]
    tokens, normed = _normed(norm, stream, parts[:2], expand)
    if isinstance(contract, Fp8Linear):
        update = contract(quantised_rows(hidden=_product(expand, normed)))
    else:
        update = _product(contract, _expanded(expand, normed))
    return Residual(tokens, (update,), parts[2])


def _contracted(block: Any, attended: torch.Tensor, normed: Activations) -> tuple[torch.Tensor, ...]:
    """What a single block adds to its stream, as one summand or two."""
    last = block.proj_out
    if isinstance(last, Fp8Linear):
        return (last(quantised_rows(attended, _product(block.proj_mlp, normed))),)
    width = attended.shape[-1]
    hidden = _expanded(block.proj_mlp, normed)
    return F.linear(hidden, last.weight[:, width:], last.bias), F.linear(attended, last.weight[:, :width])


def _projected(layers: tuple[Any, Any, Any], x: Activations) -> Heads:
    return tuple(_product(layer, x) for layer in layers)  # type: ignore[return-value]


def _product(layer: Any, x: Activations) -> torch.Tensor:
    if isinstance(layer, Fp8Linear):
        return layer(x)  # type: ignore[no-any-return]
    assert not isinstance(x, Quantised)
    return F.linear(x, layer.weight, layer.bias)


def _expanded(layer: Any, x: Activations) -> torch.Tensor:
    assert not isinstance(x, Quantised)
    return linear_gelu(x, layer.weight, layer.bias)
