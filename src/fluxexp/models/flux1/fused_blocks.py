"""FLUX's blocks by fused operations (`fused_ops.py`): the library's layers and arithmetic in fewer passes over memory.

A norm adds the update of the block before while it reads the stream; queries, keys and values are one product, and are
normed, turned and put among those of the other stream in one pass; GELU is inside the matrix product before it, or
makes the eight-bit rows that the one behind it takes; the single blocks' last product is of attention and MLP apart,
without a copy of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.context_parallel.joint_attention import Heads, JointAttention, Local, Places, new_heads
from fluxexp.models.flux1.blocks import Attend, Rope
from fluxexp.models.kernels.fp8_attention import Fp8Attention
from fluxexp.models.kernels.fp8_linear import Fp8Linear
from fluxexp.models.kernels.fused_ops import (
    Activations,
    Quantised,
    Residual,
    linear_gelu,
    modulated_norm,
    place_heads,
    quantised_rows,
)
from fluxexp.models.kernels.onednn import OneDnnLinear
from fluxexp.models.kernels.side_stream import SideStream


class FusedAttention:
    """Attention of heads that are put in their places first, in three calls, with work between them.

    Args:
        attend: here, or among all ranks that hold a part of the tokens.
        in_fp8: used instead, if any.
    """

    def __init__(self, attend: Attend | JointAttention, in_fp8: Fp8Attention | None = None) -> None:
        self._joint = attend if isinstance(attend, JointAttention) else Local(attend)
        self._in_fp8 = in_fp8

    @property
    def is_quantised(self) -> bool:
        """Whether it gives eight-bit rows."""
        return self._in_fp8 is not None

    def places(self, like: torch.Tensor, shape: Sequence[int], *, has_company: bool = False) -> Places:
        """For queries, keys and values of `shape`; see `JointAttention`."""
        if self._in_fp8 is None:
            return self._joint.places(like, shape, has_company=has_company)
        largest = like.new_zeros(1, dtype=torch.float32)
        return Places(new_heads(like, shape, torch.float8_e4m3fn), largest=largest)

    def places_within(self, projected: Heads, shape: Sequence[int]) -> Places:
        """The same, where it may be those that were projected, and there is other work while they travel."""
        if self._in_fp8 is None and isinstance(self._joint, Local):
            query, key, value = (x.view(*shape) for x in projected)
            return Places((query, key, value))
        return self.places(projected[0], shape, has_company=True)

    def send(self, joint: Places) -> Any:
        """Begin, once heads are in their places."""
        return joint if self._in_fp8 is not None else self._joint.send(joint)

    def attend(self, sent: Any) -> Any:
        """Go on."""
        if self._in_fp8 is None:
            return self._joint.attend(sent)
        query, key, value = sent.heads
        return self._in_fp8(query, key, value, sent.largest)

    def receive(self, attended: Any) -> Activations:
        """(B, tokens, width)."""
        return attended if self._in_fp8 is not None else self._joint.receive(attended).flatten(2, 3)


class FusedDoubleBlock:
    """A `FluxTransformerBlock` with merged projections."""

    def __init__(self, block: Any, attention: FusedAttention) -> None:
        self._block = block
        self._attention = attention

    def __call__(
        self, image: Residual, text: Residual, image_mod: torch.Tensor, text_mod: torch.Tensor, rope: Rope
    ) -> tuple[Residual, Residual]:
        """One block; arguments as of `DoubleBlock`."""
        block, attn = self._block, self._block.attn
        image_parts, text_parts = image_mod.chunk(6, dim=1), text_mod.chunk(6, dim=1)
        length = text.tokens.shape[1]
        shape = (len(text.tokens), length + image.tokens.shape[1], attn.heads, attn.head_dim)
        joint = self._attention.places(text.tokens, shape)
        text_tokens, text_normed = _normed(block.norm1_context.norm, text, text_parts[:2], attn.to_added_qkv)
        text_weights = (attn.norm_added_q.weight, attn.norm_added_k.weight)
        self._place(joint, _projected(attn.to_added_qkv, text_normed), text_weights, rope, 0)
        image_tokens, image_normed = _normed(block.norm1.norm, image, image_parts[:2], attn.to_qkv)
        image_weights = (attn.norm_q.weight, attn.norm_k.weight)
        self._place(joint, _projected(attn.to_qkv, image_normed), image_weights, rope, length)
        attended = self._attention.receive(self._attention.attend(self._attention.send(joint)))
        image = Residual(image_tokens, (_product(attn.to_out[0], attended[:, length:]),), image_parts[2])
        text = Residual(text_tokens, (_product(attn.to_add_out, attended[:, :length]),), text_parts[2])
        return (
            _mlp(block.norm2, block.ff, image, image_parts[3:]),
            _mlp(block.norm2_context, block.ff_context, text, text_parts[3:]),
        )

    def _place(
        self, joint: Places, heads: Heads, weights: tuple[torch.Tensor, torch.Tensor], rope: Rope, first: int
    ) -> None:
        eps = self._block.attn.norm_q.eps
        place_heads(heads, weights, rope, joint.heads, first, eps, joint.largest, joint.offsets)


class FusedSingleBlock:
    """A `FluxSingleTransformerBlock` with merged projections.

    Args:
        beside: where the MLP goes on while attention waits for what others send.
    """

    def __init__(self, block: Any, attention: FusedAttention, beside: SideStream) -> None:
        self._block = block
        self._attention = attention
        self._beside = beside

    def __call__(self, stream: Residual, mod: torch.Tensor, rope: Rope) -> Residual:
        """One block; arguments as of `SingleBlock`."""
        block, attn = self._block, self._block.attn
        shift, scale, gate = mod.chunk(3, dim=1)
        tokens, normed = _normed(block.norm.norm, stream, (shift, scale), attn.to_qkv)
        heads = _projected(attn.to_qkv, normed)
        joint = self._attention.places_within(heads, (*tokens.shape[:2], attn.heads, attn.head_dim))
        weights = (attn.norm_q.weight, attn.norm_k.weight)
        place_heads(heads, weights, rope, joint.heads, 0, attn.norm_q.eps, joint.largest, joint.offsets)
        # Where heads and what comes of them travel, they do so while the MLP is at work.
        sent = self._attention.send(joint)
        with self._beside:
            with self._beside.stream():
                hidden = _hidden(block, normed)
            attended = self._attention.attend(sent)
            with self._beside.stream():
                of_mlp = _of_mlp(block.proj_out, hidden, self._attention.is_quantised)
            received = self._attention.receive(attended)
        return Residual(tokens, _contracted(block.proj_out, received, hidden, of_mlp), gate)


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


def _hidden(block: Any, normed: Activations) -> torch.Tensor:
    """A single block's MLP in between: activated, but where its activation makes the eight-bit rows."""
    if isinstance(block.proj_out, Fp8Linear):
        return _product(block.proj_mlp, normed)
    return _expanded(block.proj_mlp, normed)


def _of_mlp(last: Any, hidden: torch.Tensor, is_attention_quantised: bool) -> torch.Tensor | None:
    """What the MLP adds to the stream; None where one product is of both, attention and MLP."""
    width = last.weight.shape[0]
    if isinstance(last, Fp8Linear):
        # Attention's rows have a scale of their own then.
        return last(quantised_rows(hidden=hidden), slice(width, None)) if is_attention_quantised else None
    if isinstance(last, OneDnnLinear):  # there a copy costs less than a second pass over the sum
        return None
    return F.linear(hidden, last.weight[:, width:], last.bias)


def _contracted(
    last: Any, attended: Activations, hidden: torch.Tensor, of_mlp: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """What a single block adds to its stream, as one summand or two."""
    width = last.weight.shape[0]
    if of_mlp is None:
        assert isinstance(attended, torch.Tensor)
        if isinstance(last, Fp8Linear):
            return (last(quantised_rows(attended, hidden)),)
        return (last(torch.cat([attended, hidden], dim=2)),)
    if isinstance(last, Fp8Linear):
        return of_mlp, last(attended, slice(width), has_bias=False)
    assert isinstance(attended, torch.Tensor)
    return of_mlp, F.linear(attended, last.weight[:, :width])


def _projected(layer: Any, x: Activations) -> Heads:
    query, key, value = _product(layer, x).chunk(3, dim=2)
    return query, key, value


def _product(layer: Any, x: Activations) -> torch.Tensor:
    """Only an `Fp8Linear` takes, and is given, quantised rows."""
    return layer(x)  # type: ignore[no-any-return]


def _expanded(layer: Any, x: Activations) -> torch.Tensor:
    assert not isinstance(x, Quantised)
    if isinstance(layer, OneDnnLinear):
        return layer.gelu(x)
    return linear_gelu(x, layer.weight, layer.bias)
