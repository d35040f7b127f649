"""Operations of a FLUX block in as few passes over memory as they need: Triton's kernels on a GPU, plain ones on a CPU.

All compute in float32 and round once, where the library rounds after every operation: lossless, not exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

_FP8_MAX = 448.0
_HALF_MAX = 65504.0
_TINY = 1e-12
_WIDEST_HEAD = 256
_HAS_FLOAT32_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype")
"""Of matrices in half precision: since PyTorch 2.8."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rows in eight bits, each with a scale of its own: what `Fp8Linear` multiplies."""

    values: torch.Tensor
    """float8_e4m3fn (B, tokens, features)."""
    scales: torch.Tensor
    """float32 (B, tokens, 1): a row is its values times its scale."""

    def __getitem__(self, rows: tuple[slice, slice]) -> Quantised:
        """Some tokens of each image."""
        return Quantised(self.values[rows], self.scales[rows])


Activations = torch.Tensor | Quantised


@dataclass(frozen=True, slots=True)
class Residual:
    """A residual stream whose last update is still to be added: the next norm does it while it reads the stream."""

    tokens: torch.Tensor
    """(B, tokens, width)."""
    updates: tuple[torch.Tensor, ...] = ()
    """Up to two summands of the update, each like `tokens`."""
    gate: torch.Tensor | None = None
    """(B, width), by which their sum is multiplied."""

    def settled(self) -> torch.Tensor:
        """The stream itself."""
        if self.gate is None:
            return self.tokens
        update = sum(update.float() for update in self.updates)
        return _clipped(self.tokens + self.gate[:, None].float() * update).to(self.tokens.dtype)


def modulated_norm(
    stream: Residual, shift: torch.Tensor, scale: torch.Tensor, eps: float, *, is_quantised: bool
) -> tuple[torch.Tensor, Activations]:
    """Add a stream's update, then norm(stream) * (1 + scale) + shift.

    Args:
        stream: contiguous, as its updates.
        shift: (B, width), as `scale`.

    Returns:
        the settled stream and its modulated norm, quantised if so asked.
    """
    _require_contiguous(stream.tokens, *stream.updates)
    if stream.tokens.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        dtype = torch.float8_e4m3fn if is_quantised else stream.tokens.dtype
        tokens, normed, scales = triton_kernels.modulated_norm(
            stream.tokens, stream.updates, stream.gate, shift, scale, eps, dtype
        )
        return tokens, normed if scales is None else Quantised(normed, scales)
    tokens = stream.settled()
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=eps)
    normed = normed * (1 + scale[:, None].float()) + shift[:, None].float()
    return tokens, _quantised(normed) if is_quantised else normed.to(tokens.dtype)


def place_heads(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weights: tuple[torch.Tensor, torch.Tensor],
    rope: tuple[torch.Tensor, torch.Tensor],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    first: int,
    eps: float,
    largest: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
) -> None:
    """RMS norm and RoPE of queries and keys, written with the values into their places among all tokens.

    Args:
        heads: queries, keys and values as projected, each (B, tokens, heads * head dimension); as contiguous tensors,
            or as three columns of one.
        weights: of the norms of queries and keys, each (head dimension,).
        rope: cosines and sines of all tokens, float32 (joint tokens, head dimension), each value twice.
        out: where queries, keys and values go, each (B, joint tokens, heads, head dimension). They may be `heads`
            themselves, seen so. Or (B, joint tokens, shares, heads of a share, head dimension), of which heads
            lie together, and shares, tokens and images anywhere. In float8_e4m3fn what exceeds its range is cut off.
        first: place of the first of these tokens among all.
        largest: float32 (1,), raised to the largest magnitude among the values.
        offsets: int64 (shares,), on a GPU: how many elements from there each share goes, and not where `out` says.
    """
    query, key, value = heads
    in_shares = [place if place.ndim == 5 else place.unsqueeze(2) for place in out]
    _require_contiguous(*(x[0, :1] for x in heads), *(place[0, 0, 0] for place in in_shares))
    assert all(x.stride(1) == query.stride(1) and _rows_follow(x) for x in heads), "rows must be equally far apart"
    assert all(place.stride() == in_shares[0].stride() for place in in_shares)
    if query.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        places = in_shares[0], in_shares[1], in_shares[2]
        triton_kernels.place_heads(heads, weights, rope, places, first, eps, largest, offsets)
        return
    assert offsets is None
    length = query.shape[1]
    cosines, sines = (table[first : first + length, None] for table in rope)
    shape = (*query.shape[:2], -1, in_shares[0].shape[-1])
    for x, weight, place in zip((query, key), weights, in_shares, strict=False):
        split = x.view(shape).float()
        normed = F.rms_norm(split, split.shape[-1:], weight.float(), eps)
        left, right = normed[..., ::2], normed[..., 1::2]
        turned = normed * cosines + torch.stack((-right, left), dim=-1).flatten(-2) * sines
        own = place[:, first : first + length]
        own.copy_(_within(turned, place.dtype).view(own.shape))
    own = in_shares[2][:, first : first + length]
    own.copy_(_within(value, own.dtype).view(own.shape))
    if largest is not None:
        torch.maximum(largest, value.abs().max().float(), out=largest)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x @ weight.T + bias) by tanh's approximation; on a GPU inside the matrix product.

    Args:
        x: (..., in features); weight: (out features, in features); bias: (out features,).
    """
    if not x.is_cuda:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    flat = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
    return flat.view(*x.shape[:-1], weight.shape[0])


def quantised_rows(plain: torch.Tensor | None = None, hidden: torch.Tensor | None = None) -> Quantised:
    """cat(plain, gelu(hidden)) of the last dimension, each row quantised by its largest value.

    Args:
        plain: (B, tokens, features), of which the last are contiguous.
        hidden: (B, tokens, features), contiguous; GELU by tanh's approximation.
    """
    given = hidden if plain is None else plain
    assert given is not None
    if hidden is not None:
        _require_contiguous(hidden)
    if given.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        return Quantised(*triton_kernels.quantised_rows(plain, hidden))
    parts = [] if plain is None else [plain.float()]
    if hidden is not None:
        parts.append(F.gelu(hidden.float(), approximate="tanh"))
    return _quantised(torch.cat(parts, dim=-1))


def group_norm_silu(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """silu(group_norm(x + before)).

    Args:
        x: (B, channels, height, width); on a GPU channels last, or it is brought into that order.
        weight: (channels,), as `bias` and `before`.
    """
    if x.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        return triton_kernels.group_norm_silu(x, groups, weight, bias, eps, before)
    if before is not None:
        x = x + before[:, None, None]
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


def add_by_channel(x: torch.Tensor, more: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x + more + bias, in the memory of `x` if that will do.

    Args:
        x: (B, channels, height, width), as `more`; on a GPU channels last, or brought into that order.
        bias: (channels,).
    """
    if x.is_cuda:
        from fluxexp.models.kernels import triton_kernels

        return triton_kernels.add_by_channel(x, more, bias)
    return x.add_(more).add_(bias[:, None, None])


def one_head_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query @ key.T / sqrt(width)) @ value.

    Attention kernels for Hopper end at heads of 256. On a GPU a wider head is two matrix products with a softmax
    between them, of as many rows at a time as fit into 1.5 GiB; scores stay in float32.

    Args:
        query: (B, tokens, width), as `key` and `value`; of the strides the last is 1.
    """
    if query.is_cuda and query.shape[-1] > _WIDEST_HEAD and query.itemsize == 2 and _HAS_FLOAT32_PRODUCTS:
        from fluxexp.models.kernels import triton_kernels

        return triton_kernels.one_head_attention(query, key, value)
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


def _require_contiguous(*tensors: torch.Tensor) -> None:
    """On every device, so that a CPU finds what a GPU's kernels would misread."""
    assert all(tensor.is_contiguous() for tensor in tensors), "fused operations know no strides"


def _rows_follow(x: torch.Tensor) -> bool:
    return len(x) == 1 or x.stride(0) == x.shape[1] * x.stride(1)


def _quantised(x: torch.Tensor) -> Quantised:
    scales = x.abs().amax(dim=-1, keepdim=True).clamp(min=_TINY) / _FP8_MAX
    return Quantised((x / scales).to(torch.float8_e4m3fn), scales)


def _within(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.clamp(-_FP8_MAX, _FP8_MAX).to(dtype) if dtype == torch.float8_e4m3fn else x.to(dtype)


def _clipped(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.clip(-_HALF_MAX, _HALF_MAX) if tokens.dtype == torch.float16 else tokens
