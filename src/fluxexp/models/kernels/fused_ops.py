"""Operations of a FLUX block in as few passes over memory as possible: Triton kernels on a GPU, plain PyTorch on a CPU.

The CPU versions define what the kernels compute, and the tests compare the two. Both compute in float32 and round once,
but the library rounds after each operation. So they are lossless, not exact. Both check strides, so that a run on a
CPU finds a tensor that the GPU kernels would misread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

_FP8_MAX = 448.0
"""The largest value of float8_e4m3fn."""
_HALF_MAX = 65504.0
"""The largest finite float16."""
_TINY = 1e-12
_MAX_HEAD_DIM = 256
"""The widest head that the attention kernels for Hopper GPUs take."""
_HAS_FLOAT32_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype")
"""Whether a product of matrices in half precision can be stored in float32: since PyTorch 2.8."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows in FP8, each with its own scale: the input of `Fp8Linear`."""

    values: torch.Tensor
    """float8_e4m3fn (B, tokens, features)."""
    scales: torch.Tensor
    """float32 (B, tokens, 1). A row is its values times its scale."""

    def __getitem__(self, rows: tuple[slice, slice]) -> Quantized:
        """Some tokens of each image."""
        return Quantized(self.values[rows], self.scales[rows])


Activations = torch.Tensor | Quantized


@dataclass(frozen=True, slots=True)
class Residual:
    """A residual stream with an update that is not yet added. The next norm adds it while it reads the stream."""

    tokens: torch.Tensor
    """(B, tokens, width)."""
    updates: tuple[torch.Tensor, ...] = ()
    """At most two tensors like `tokens`. Their sum is the update."""
    gate: torch.Tensor | None = None
    """(B, width). The update is multiplied by it. None if there is no update."""

    def materialize(self) -> torch.Tensor:
        """The stream with its update added: (B, tokens, width)."""
        if self.gate is None:
            return self.tokens
        update = sum(update.float() for update in self.updates)
        return _clipped(self.tokens + self.gate[:, None].float() * update).to(self.tokens.dtype)


def modulated_norm(
    stream: Residual, shift: torch.Tensor, scale: torch.Tensor, eps: float, *, is_quantized: bool
) -> tuple[torch.Tensor, Activations]:
    """Add the stream's update, then compute layer_norm(stream) * (1 + scale) + shift.

    Args:
        stream: its tokens and updates are contiguous.
        shift: (B, width); `scale` likewise. They and the gate may be slices of wider rows.
        is_quantized: return the norm as FP8 rows with their scales.

    Returns:
        the stream with its update added, and its modulated norm; both (B, tokens, width).
    """
    _require_contiguous(stream.tokens, *stream.updates)
    if stream.tokens.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        dtype = torch.float8_e4m3fn if is_quantized else stream.tokens.dtype
        tokens, normed, scales = triton_kernels.modulated_norm(
            stream.tokens, stream.updates, stream.gate, shift, scale, eps, dtype
        )
        return tokens, normed if scales is None else Quantized(normed, scales)
    tokens = stream.materialize()
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=eps)
    normed = normed * (1 + scale[:, None].float()) + shift[:, None].float()
    return tokens, _quantize(normed) if is_quantized else normed.to(tokens.dtype)


def qk_norm_rope(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weights: tuple[torch.Tensor, torch.Tensor],
    rope: tuple[torch.Tensor, torch.Tensor],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    first_token: int,
    eps: float,
    amax: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
) -> None:
    """RMS norm and RoPE of queries and keys. Writes them, and the values unchanged, to a range of the joint tokens.

    Args:
        heads: queries, keys and values as projected, each (B, tokens, heads * head dimension): contiguous tensors, or
            three column ranges of one product.
        weights: of the norms of queries and keys, each (head dimension,).
        rope: cosines and sines of all joint tokens, float32 (joint tokens, head dimension), each value twice.
        out: where queries, keys and values go, each (B, joint tokens, heads, head dimension). It may be the memory of
            `heads`. Or (B, joint tokens, groups, heads of a group, head dimension): the heads of a group are
            contiguous; groups, tokens and images may have any strides. If the dtype is float8_e4m3fn, values beyond
            its range saturate.
        first_token: index of the first of these tokens among the joint tokens.
        amax: float32 (B,), raised to the largest magnitude of each image's values. A GPU only writes it for FP8
            outputs.
        offsets: int64 (groups,), only on a GPU. Each group is written this many elements after the position of group 0
            in `out`: the groups may be in the memory of other GPUs.
    """
    query, key, value = heads
    in_groups = [part if part.ndim == 5 else part.unsqueeze(2) for part in out]
    _require_contiguous(*(x[0, :1] for x in heads), *(part[0, 0, 0] for part in in_groups))
    # The kernel computes one offset for all three inputs, and one for all three outputs.
    assert all(x.stride(1) == query.stride(1) and _images_follow(x) for x in heads), "rows must be equally far apart"
    assert all(part.stride() == in_groups[0].stride() for part in in_groups), "the outputs must have equal strides"
    if query.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        grouped = in_groups[0], in_groups[1], in_groups[2]
        triton_kernels.qk_norm_rope(heads, weights, rope, grouped, first_token, eps, amax, offsets)
        return
    assert offsets is None, "only the GPU kernel supports offsets"
    length = query.shape[1]
    cosines, sines = (table[first_token : first_token + length, None] for table in rope)
    shape = (*query.shape[:2], -1, in_groups[0].shape[-1])
    for x, weight, part in zip((query, key), weights, in_groups, strict=False):
        split = x.view(shape).float()
        normed = F.rms_norm(split, split.shape[-1:], weight.float(), eps)
        # Channels 2i and 2i + 1 are a pair: (even, odd) becomes (even * cos - odd * sin, odd * cos + even * sin).
        even, odd = normed[..., ::2], normed[..., 1::2]
        rotated = normed * cosines + torch.stack((-odd, even), dim=-1).flatten(-2) * sines
        own = part[:, first_token : first_token + length]
        own.copy_(_cast(rotated, part.dtype).view(own.shape))
    own = in_groups[2][:, first_token : first_token + length]
    own.copy_(_cast(value, own.dtype).view(own.shape))
    if amax is not None:
        torch.maximum(amax, value.abs().flatten(1).amax(dim=1).float(), out=amax)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x @ weight.T + bias), with the tanh approximation. On a GPU, GELU is part of the matrix product's kernel.

    Args:
        x: (..., in features).
        weight: (out features, in features).
        bias: (out features,).

    Returns:
        (..., out features).
    """
    if not x.is_cuda:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    flat = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
    return flat.view(*x.shape[:-1], weight.shape[0])


def quantize_rows(plain: torch.Tensor | None = None, hidden: torch.Tensor | None = None) -> Quantized:
    """cat(plain, gelu(hidden)) along the last dimension, in FP8. The largest magnitude of a row determines its scale.

    At least one of the two is given.

    Args:
        plain: (B, tokens, features). Its last dimension is contiguous; tokens and images may have any strides.
        hidden: (B, tokens, features), contiguous. GELU uses the tanh approximation.
    """
    given = hidden if plain is None else plain
    assert given is not None
    if hidden is not None:
        _require_contiguous(hidden)
    if given.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        return Quantized(*triton_kernels.quantize_rows(plain, hidden))
    parts = [] if plain is None else [plain.float()]
    if hidden is not None:
        parts.append(F.gelu(hidden.float(), approximate="tanh"))
    return _quantize(torch.cat(parts, dim=-1))


def group_norm_silu(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    pre_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """silu(group_norm(x + pre_bias)).

    Args:
        x: (B, channels, height, width). A GPU copies it to channels last, unless it has that memory format.
        weight: (channels,); `bias` and `pre_bias` likewise.
        pre_bias: the bias of the convolution before the norm, if that convolution has not added it.

    Returns:
        (B, channels, height, width); on a GPU channels last.
    """
    if x.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        return triton_kernels.group_norm_silu(x, groups, weight, bias, eps, pre_bias)
    if pre_bias is not None:
        x = x + pre_bias[:, None, None]
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def add_by_channel(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x + residual + bias. It overwrites `x`, except on a GPU where `x` is not channels last.

    Args:
        x: (B, channels, height, width); `residual` likewise. A GPU copies them to channels last, unless they have that
            memory format.
        bias: (channels,).
    """
    if x.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        return triton_kernels.add_by_channel(x, residual, bias)
    return x.add_(residual).add_(bias[:, None, None])


def one_head_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query @ key.T / sqrt(width)) @ value.

    Attention kernels for Hopper GPUs take heads up to 256. For a wider head, a GPU computes two matrix products with a
    softmax between them, for as many rows at a time as fit into 1.5 GiB. Scores stay in float32.

    Args:
        query: (B, tokens, width); `key` and `value` likewise. The stride of the last dimension is 1.
    """
    if query.is_cuda and query.shape[-1] > _MAX_HEAD_DIM and query.itemsize == 2 and _HAS_FLOAT32_PRODUCTS:
        from fluxexp.models.kernels import triton_kernels

        return triton_kernels.one_head_attention(query, key, value)
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


def _require_contiguous(*tensors: torch.Tensor) -> None:
    """Checked on every device, so that a CPU finds what the kernels of a GPU would misread."""
    assert all(tensor.is_contiguous() for tensor in tensors), "fused operations need contiguous tensors"


def _images_follow(x: torch.Tensor) -> bool:
    """Whether the images are contiguous, one after the other. Then a kernel needs no stride between images."""
    return len(x) == 1 or x.stride(0) == x.shape[1] * x.stride(1)


def _quantize(x: torch.Tensor) -> Quantized:
    scales = x.abs().amax(dim=-1, keepdim=True).clamp(min=_TINY) / _FP8_MAX
    return Quantized((x / scales).to(torch.float8_e4m3fn), scales)


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` in `dtype`. FP8 saturates: e4m3fn has no infinity, and a cast need not saturate by itself."""
    return x.clamp(-_FP8_MAX, _FP8_MAX).to(dtype) if dtype == torch.float8_e4m3fn else x.to(dtype)


def _clipped(tokens: torch.Tensor) -> torch.Tensor:
    """Clipped to the range of float16, as the library clips its streams in float16."""
    return tokens.clip(-_HALF_MAX, _HALF_MAX) if tokens.dtype == torch.float16 else tokens
