"""FLUX's blocks by fused operations (`fused_ops.py`): the library's layers and arithmetic in fewer passes over memory.

A norm adds the update of the block before while it reads the stream; queries and keys are normed, turned and put among
those of the other stream in one pass; GELU is inside the matrix product before it, or makes the eight-bit rows that
the one behind it takes; the single blocks' last product is of attention and MLP apart, without a copy of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.blocks import Attend, Rope
from fluxexp.models.fp8 import Fp8Linear
from fluxexp.models.fp8_attention import Fp8Attention
from fluxexp.models.fused_ops import (
    Activations,
    Quantised,
    Residual,
    linear_gelu,
    modulated_norm,
    place_heads,
    quantised_rows,
)
from fluxexp.models.onednn import OneDnnLinear

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values (B, tokens, heads, head dimension)."""


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Attention of heads that are put in their places first."""

    attend: Attend
    in_fp8: Fp8Attention | None = None
    """Used instead, if any."""

    def places(self, like: torch.Tensor, shape: Sequence[int]) -> tuple[Heads, torch.Tensor | None]:
        """Where queries, keys and values of `shape` go, and where the largest value goes if it is needed."""
        if self.in_fp8 is None:
            return tuple(like.new_empty(shape) for _ in range(3)), None  # type: ignore[return-value]
        places: Heads = tuple(like.new_empty(shape, dtype=torch.float8_e4m3fn) for _ in range(3))  # type: ignore[assignment]
        return places, like.new_zeros(1, dtype=torch.float32)

    def __call__(self, heads: Heads, largest: torch.Tensor | None) -> Activations:
        """(B, tokens, width)."""
        if self.in_fp8 is None or largest is None:
            return self.attend(*heads).flatten(2, 3)
        return self.in_fp8(*heads, largest)


class FusedDoubleBlock:
    """A `FluxTransformerBlock`."""

    def __init__(self, block: Any, attention: FusedAttention) -> None:
        self._block = block
        self._attention = attention

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
        joint, largest = self._attention.places(text_tokens, shape)
        text_heads = _projected((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), text_normed)
        text_weights = (attn.norm_added_q.weight, attn.norm_added_k.weight)
        place_heads(text_heads, text_weights, rope, joint, 0, attn.norm_q.eps, largest)
        image_heads = _projected((attn.to_q, attn.to_k, attn.to_v), image_normed)
        image_weights = (attn.norm_q.weight, attn.norm_k.weight)
        place_heads(image_heads, image_weights, rope, joint, length, attn.norm_q.eps, largest)
        attended = self._attention(joint, largest)
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

    def __init__(self, block: Any, attention: FusedAttention) -> None:
        self._block = block
        self._attention = attention

    def __call__(self, stream: Residual, mod: torch.Tensor, rope: Rope) -> Residual:
        """One block; arguments as of `SingleBlock`."""
        block, attn = self._block, self._block.attn
        shift, scale, gate = mod.chunk(3, dim=1)
        tokens, normed = _normed(block.norm.norm, stream, (shift, scale), attn.to_q)
        heads = _projected((attn.to_q, attn.to_k, attn.to_v), normed)
        shape = (*tokens.shape[:2], attn.heads, attn.head_dim)
        places: Heads = tuple(x.view(shape) for x in heads)  # type: ignore[assignment]
        largest = None
        if self._attention.in_fp8 is not None:
            places, largest = self._attention.places(tokens, shape)
        place_heads(heads, (attn.norm_q.weight, attn.norm_k.weight), rope, places, 0, attn.norm_q.eps, largest)
        attended = self._attention(places, largest)
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


def _contracted(block: Any, attended: Activations, normed: Activations) -> tuple[torch.Tensor, ...]:
    """What a single block adds to its stream, as one summand or two."""
    last, hidden = block.proj_out, block.proj_mlp
    width = last.weight.shape[0]
    if isinstance(attended, Quantised):  # with a scale of its own, unlike the MLP's rows
        of_mlp = last(quantised_rows(hidden=_product(hidden, normed)), slice(width, None))
        return of_mlp, last(attended, slice(width), has_bias=False)
    if isinstance(last, Fp8Linear):
        return (last(quantised_rows(attended, _product(hidden, normed))),)
    if isinstance(last, OneDnnLinear):  # there a copy costs less than a second pass over the sum
        return (last(torch.cat([attended, _expanded(hidden, normed)], dim=2)),)
    of_mlp = F.linear(_expanded(hidden, normed), last.weight[:, width:], last.bias)
    return of_mlp, F.linear(attended, last.weight[:, :width])


def _projected(layers: tuple[Any, Any, Any], x: Activations) -> Heads:
    return tuple(_product(layer, x) for layer in layers)  # type: ignore[return-value]


def _product(layer: Any, x: Activations) -> torch.Tensor:
    """Only an `Fp8Linear` takes, and is given, quantised rows."""
    return layer(x)  # type: ignore[no-any-return]


def _expanded(layer: Any, x: Activations) -> torch.Tensor:
    assert not isinstance(x, Quantised)
    if isinstance(layer, OneDnnLinear):
        return layer.gelu(x)
    return linear_gelu(x, layer.weight, layer.bias)
