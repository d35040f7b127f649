"""The transformer's blocks with fused operations (`fused_ops.py`): the same arithmetic in fewer passes over memory.

- A norm adds the update of the block before it while it reads the residual stream. So blocks pass on a `Residual`:
  tokens with an update and its gate that are not yet added.
- Queries, keys and values are one matrix product. One kernel normalizes and rotates (RoPE) queries and keys, and writes
  all three to their range of the joint tokens: nothing is concatenated.
- GELU is part of the matrix product before it. In FP8 it is part of the kernel that quantizes the rows for the product
  after it.
- The last product of a single block runs separately on attention and MLP: their concatenation is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.context_parallel.joint_attention import HeadBuffers, Heads, JointAttention, Local, new_heads
from fluxexp.models.flux1.ip_adapter import BlockPicture, attended_picture
from fluxexp.models.kernels.attention_types import Attend, Rope
from fluxexp.models.kernels.fp8_attention import Fp8Attention
from fluxexp.models.kernels.fp8_linear import Fp8Linear
from fluxexp.models.kernels.fused_ops import (
    Activations,
    Quantized,
    Residual,
    linear_gelu,
    modulated_norm,
    qk_norm_rope,
    quantize_rows,
)
from fluxexp.models.kernels.onednn import OneDnnLinear
from fluxexp.models.kernels.side_stream import SideStream


class FusedAttention:
    """Attention in three calls (`send`, `attend`, `receive`), so that other work can run while heads are sent.

    Args:
        attend: attention on this rank, or among all ranks that hold a part of the tokens.
        in_fp8: FP8 attention, used instead of `attend` if given. It only works on one rank.
    """

    def __init__(self, attend: Attend | JointAttention, in_fp8: Fp8Attention | None = None) -> None:
        self._joint = attend if isinstance(attend, JointAttention) else Local(attend)
        self._in_fp8 = in_fp8

    @property
    def is_quantized(self) -> bool:
        """Whether `receive` returns FP8 rows with their scales."""
        return self._in_fp8 is not None

    def buffers(self, like: torch.Tensor, shape: Sequence[int], *, overlaps: bool = False) -> HeadBuffers:
        """Memory for queries, keys and values of `shape` (B, tokens, heads, head dimension); see `JointAttention`."""
        if self._in_fp8 is None:
            return self._joint.buffers(like, shape, overlaps=overlaps)
        # The kernel that writes the values takes the largest of each image in the same pass: the output scale needs it.
        amax = like.new_zeros(shape[0], dtype=torch.float32)
        return HeadBuffers(new_heads(like, shape, torch.float8_e4m3fn), amax=amax)

    def buffers_in_place(self, projected: Heads, shape: Sequence[int]) -> HeadBuffers:
        """As `buffers`, for a single block: on one rank the projected heads themselves, which the kernel overwrites."""
        if self._in_fp8 is None and isinstance(self._joint, Local):
            query, key, value = (x.view(*shape) for x in projected)
            return HeadBuffers((query, key, value))
        return self.buffers(projected[0], shape, overlaps=True)

    def send(self, joint: HeadBuffers) -> Any:
        """Start to send the heads to other ranks, once they are written to their buffers."""
        return joint if self._in_fp8 is not None else self._joint.send(joint)

    def attend(self, sent: Any) -> Any:
        """Attend, once the heads of all ranks have arrived. The result may still have to be sent to other ranks."""
        if self._in_fp8 is None:
            return self._joint.attend(sent)
        query, key, value = sent.heads
        return self._in_fp8(query, key, value, sent.amax)

    def receive(self, attended: Any) -> Activations:
        """The attended tokens (B, tokens, width), once they have arrived."""
        return attended if self._in_fp8 is not None else self._joint.receive(attended).flatten(2, 3)


class FusedDoubleBlock:
    """A `FluxTransformerBlock` with merged projections."""

    def __init__(self, block: Any, attention: FusedAttention) -> None:
        self._block = block
        self._attention = attention

    def __call__(
        self,
        image: Residual,
        text: Residual,
        image_mod: torch.Tensor,
        text_mod: torch.Tensor,
        rope: Rope,
        picture: BlockPicture | None = None,
    ) -> tuple[Residual, Residual]:
        """Image and text stream after the block; arguments as of `DoubleBlock`."""
        block, attn = self._block, self._block.attn
        image_parts, text_parts = image_mod.chunk(6, dim=1), text_mod.chunk(6, dim=1)
        length = text.tokens.shape[1]  # text tokens come first in the joint layout
        shape = (len(text.tokens), length + image.tokens.shape[1], attn.heads, attn.head_dim)
        joint = self._attention.buffers(text.tokens, shape)
        text_tokens, text_normed = _normed(block.norm1_context.norm, text, text_parts[:2], attn.to_added_qkv)
        text_weights = (attn.norm_added_q.weight, attn.norm_added_k.weight)
        self._write_heads(joint, _projected(attn.to_added_qkv, text_normed), text_weights, rope, 0)
        image_tokens, image_normed = _normed(block.norm1.norm, image, image_parts[:2], attn.to_qkv)
        image_weights = (attn.norm_q.weight, attn.norm_k.weight)
        image_heads = _projected(attn.to_qkv, image_normed)
        self._write_heads(joint, image_heads, image_weights, rope, length)
        attended = self._attention.receive(self._attention.attend(self._attention.send(joint)))
        image = Residual(image_tokens, (_product(attn.to_out[0], attended[:, length:]),), image_parts[2])
        text = Residual(text_tokens, (_product(attn.to_add_out, attended[:, :length]),), text_parts[2])
        image = _mlp(block.norm2, block.ff, image, image_parts[3:])
        if picture is not None:
            query = attn.norm_q(image_heads[0].view(*image_tokens.shape[:2], attn.heads, attn.head_dim))
            image = replace(image, tokens=image.tokens + attended_picture(attn, query, picture))
        return (
            image,
            _mlp(block.norm2_context, block.ff_context, text, text_parts[3:]),
        )

    def _write_heads(
        self, joint: HeadBuffers, heads: Heads, weights: tuple[torch.Tensor, torch.Tensor], rope: Rope, first_token: int
    ) -> None:
        eps = self._block.attn.norm_q.eps
        qk_norm_rope(heads, weights, rope, joint.heads, first_token, eps, joint.amax, joint.offsets)


class FusedSingleBlock:
    """A `FluxSingleTransformerBlock` with merged projections.

    Args:
        side_stream: runs the MLP while attention waits for what other ranks send.
    """

    def __init__(self, block: Any, attention: FusedAttention, side_stream: SideStream) -> None:
        self._block = block
        self._attention = attention
        self._side_stream = side_stream

    def __call__(self, stream: Residual, mod: torch.Tensor, rope: Rope) -> Residual:
        """The stream after the block; arguments as of `SingleBlock`."""
        block, attn = self._block, self._block.attn
        shift, scale, gate = mod.chunk(3, dim=1)
        tokens, normed = _normed(block.norm.norm, stream, (shift, scale), attn.to_qkv)
        heads = _projected(attn.to_qkv, normed)
        joint = self._attention.buffers_in_place(heads, (*tokens.shape[:2], attn.heads, attn.head_dim))
        weights = (attn.norm_q.weight, attn.norm_k.weight)
        qk_norm_rope(heads, weights, rope, joint.heads, 0, attn.norm_q.eps, joint.amax, joint.offsets)
        # The MLP does not depend on attention. Each half of it is launched after the start of a transfer, so that the
        # transfer and the MLP run at the same time. The side stream begins after `normed` is written, and the current
        # stream waits for it at the end of the outer `with`: `_contracted` reads what both have made.
        sent = self._attention.send(joint)
        with self._side_stream:
            with self._side_stream.stream():
                hidden = _hidden(block, normed)
            attended = self._attention.attend(sent)
            with self._side_stream.stream():
                of_mlp = _of_mlp(block.proj_out, hidden, self._attention.is_quantized)
            received = self._attention.receive(attended)
        return Residual(tokens, _contracted(block.proj_out, received, hidden, of_mlp), gate)


def _normed(
    norm: Any, stream: Residual, parts: Sequence[torch.Tensor], reader: torch.nn.Module
) -> tuple[torch.Tensor, Activations]:
    """The stream with its update added, and its norm modulated by shift and scale: in FP8 if `reader` takes that."""
    shift, scale = parts
    return modulated_norm(stream, shift, scale, norm.eps, is_quantized=isinstance(reader, Fp8Linear))


def _mlp(norm: Any, layers: Any, stream: Residual, parts: Sequence[torch.Tensor]) -> Residual:
    """The MLP of a double block, by the library's `FeedForward`; `parts` are shift, scale and gate."""
    expand, contract = layers.net[0].proj, layers.net[2]
    tokens, normed = _normed(norm, stream, parts[:2], expand)
    if isinstance(contract, Fp8Linear):
        update = contract(quantize_rows(hidden=_product(expand, normed)))
    else:
        update = _product(contract, _expanded(expand, normed))
    return Residual(tokens, (update,), parts[2])


def _hidden(block: Any, normed: Activations) -> torch.Tensor:
    """The hidden layer of a single block's MLP; before GELU if GELU is part of quantizing the rows."""
    if isinstance(block.proj_out, Fp8Linear):
        return _product(block.proj_mlp, normed)
    return _expanded(block.proj_mlp, normed)


def _of_mlp(last: Any, hidden: torch.Tensor, is_attention_quantized: bool) -> torch.Tensor | None:
    """What the MLP adds to the stream (B, tokens, width); None where one product takes attention and MLP together."""
    width = last.weight.shape[0]
    if isinstance(last, Fp8Linear):
        # FP8 attention returns rows with their own scale, so they cannot share a product with the rows of the MLP.
        return last(quantize_rows(hidden=hidden), slice(width, None)) if is_attention_quantized else None
    if isinstance(last, OneDnnLinear):  # on a CPU the concatenation costs less than a second pass over the sum
        return None
    return F.linear(hidden, last.weight[:, width:], last.bias)


def _contracted(
    last: Any, attended: Activations, hidden: torch.Tensor, of_mlp: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """What a single block adds to its stream: one tensor, or two that the next norm adds while it reads them.

    The first `width` columns of the weight are for attention, the others for the MLP. Only one part adds the bias.
    """
    width = last.weight.shape[0]
    if of_mlp is None:
        assert isinstance(attended, torch.Tensor)
        if isinstance(last, Fp8Linear):
            return (last(quantize_rows(attended, hidden)),)
        return (last(torch.cat([attended, hidden], dim=2)),)
    if isinstance(last, Fp8Linear):
        return of_mlp, last(attended, slice(width), has_bias=False)
    assert isinstance(attended, torch.Tensor)
    return of_mlp, F.linear(attended, last.weight[:, :width])


def _projected(layer: Any, x: Activations) -> Heads:
    query, key, value = _product(layer, x).chunk(3, dim=2)
    return query, key, value


def _product(layer: Any, x: Activations) -> torch.Tensor:
    """`layer(x)`. Only an `Fp8Linear` gets, and accepts, quantized rows: `_normed` takes care of that."""
    return layer(x)  # type: ignore[no-any-return]


def _expanded(layer: Any, x: Activations) -> torch.Tensor:
    """GELU of `layer(x)`, in one kernel."""
    assert not isinstance(x, Quantized)
    if isinstance(layer, OneDnnLinear):
        return layer.gelu(x)
    return linear_gelu(x, layer.weight, layer.bias)
