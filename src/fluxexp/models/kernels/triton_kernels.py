"""The fused operations of `fused_ops.py` as Triton kernels, one program a token. Imported on machines with a GPU only.

All of them are bound by memory: each reads its inputs once, computes in float32 and writes its outputs once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_FP8_MAX = tl.constexpr(448.0)  # of float8_e4m3fn
_TINY = tl.constexpr(1e-12)


@triton.jit
def _modulated_norm(
    x_ptr, first_ptr, second_ptr, gate_ptr, shift_ptr, scale_ptr, sum_ptr, out_ptr, quantum_ptr,
    tokens, gate_stride, shift_stride, scale_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, UPDATES: tl.constexpr, QUANTISED: tl.constexpr, CLIPPED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    image = row // tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(x_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if UPDATES > 0:
        update = tl.load(first_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        if UPDATES > 1:
            update += tl.load(second_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + image * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
        x += gate * update
        if CLIPPED:
            x = tl.clamp(x, -65504.0, 65504.0)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * WIDTH + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, axis=0) / WIDTH
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / WIDTH
    shift = tl.load(shift_ptr + image * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + image * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    normed = centred * tl.rsqrt(variance + eps) * (1.0 + scale) + shift
    if QUANTISED:
        quantum = tl.maximum(tl.max(tl.abs(normed), axis=0), _TINY) / _FP8_MAX
        tl.store(quantum_ptr + row, quantum)
        normed = normed * (1.0 / quantum)
    tl.store(out_ptr + row * WIDTH + columns, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _turned(x_ptr, weight_ptr, out_ptr, offsets, out_offsets, inside, cosine, sine, eps,
            HEADS: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """RMS norm of each head, then its pairs of neighbours turned by the token's angles."""
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)
    weight = tl.load(weight_ptr + tl.arange(0, DIM)).to(tl.float32)
    normed = x * inverse[:, None] * weight[None, :]
    left, right = tl.split(tl.reshape(normed, (HEADS, DIM // 2, 2)))
    turned = tl.join(left * cosine - right * sine, right * cosine + left * sine)
    turned = tl.reshape(turned, (HEADS, DIM))
    if out_ptr.dtype.element_ty == tl.float8e4nv:
        turned = tl.clamp(turned, -_FP8_MAX, _FP8_MAX)
    tl.store(out_ptr + out_offsets, turned.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _heads(
    query_ptr, key_ptr, value_ptr, query_weight_ptr, key_weight_ptr, cosine_ptr, sine_ptr,
    query_out_ptr, key_out_ptr, value_out_ptr, largest_ptr, tokens, row_stride, first, eps,
    offsets_ptr, out_batch_stride, out_row_stride, share_stride,
    HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr, SHARE: tl.constexpr, DIM: tl.constexpr, MOVES_VALUE: tl.constexpr,
    OFFSETS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = first + row % tokens
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    inside = heads < HEADS
    channels = tl.arange(0, DIM)[None, :]
    offsets = row * row_stride + heads * DIM + channels
    out_offsets = (row // tokens) * out_batch_stride + place * out_row_stride + (heads % SHARE) * DIM + channels
    if OFFSETS:
        out_offsets += tl.load(offsets_ptr + heads // SHARE, mask=inside, other=0)
    else:
        out_offsets += (heads // SHARE) * share_stride
    pairs = 2 * tl.arange(0, DIM // 2)[None, :]  # tables hold each angle twice, once for each of its pair
    cosine = tl.load(cosine_ptr + place * DIM + pairs)
    sine = tl.load(sine_ptr + place * DIM + pairs)
    _turned(query_ptr, query_weight_ptr, query_out_ptr, offsets, out_offsets, inside, cosine, sine, eps,
            HEADS_BLOCK, DIM)  # fmt: skip
    _turned(key_ptr, key_weight_ptr, key_out_ptr, offsets, out_offsets, inside, cosine, sine, eps,
            HEADS_BLOCK, DIM)  # fmt: skip
    if MOVES_VALUE:
        value = tl.load(value_ptr + offsets, mask=inside, other=0.0)
        if value_out_ptr.dtype.element_ty == tl.float8e4nv:
            value = value.to(tl.float32)
            tl.atomic_max(largest_ptr, tl.max(tl.abs(value)))
            value = tl.clamp(value, -_FP8_MAX, _FP8_MAX)
        tl.store(value_out_ptr + out_offsets, value.to(value_out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _quantised_rows(
    plain_ptr, hidden_ptr, out_ptr, quantum_ptr, tokens, plain_batch_stride, plain_row_stride,
    PLAIN: tl.constexpr, PLAIN_BLOCK: tl.constexpr, HIDDEN: tl.constexpr, HIDDEN_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    image, place = row // tokens, row % tokens
    largest = 0.0
    if PLAIN > 0:
        plain_columns = tl.arange(0, PLAIN_BLOCK)
        plain_row = plain_ptr + image * plain_batch_stride + place * plain_row_stride
        plain = tl.load(plain_row + plain_columns, mask=plain_columns < PLAIN, other=0.0).to(tl.float32)
        largest = tl.max(tl.abs(plain), axis=0)
    if HIDDEN > 0:
        columns = tl.arange(0, HIDDEN_BLOCK)
        x = tl.load(hidden_ptr + row * HIDDEN + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
        # tanh's approximation of GELU, as x times a sigmoid: 1 + tanh(u) = 2 sigmoid(2 u)
        active = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        largest = tl.maximum(largest, tl.max(tl.abs(active), axis=0))
    quantum = tl.maximum(largest, _TINY) / _FP8_MAX
    tl.store(quantum_ptr + row, quantum)
    inverse = 1.0 / quantum
    out_row = out_ptr + row * (PLAIN + HIDDEN)
    if PLAIN > 0:
        tl.store(out_row + plain_columns, (plain * inverse).to(out_ptr.dtype.element_ty), mask=plain_columns < PLAIN)
    if HIDDEN > 0:
        tl.store(out_row + PLAIN + columns, (active * inverse).to(out_ptr.dtype.element_ty), mask=columns < HIDDEN)


@triton.jit
def _channel_sums(
    x_ptr, sums_ptr, pixels, turns,
    CHANNELS: tl.constexpr, CHANNELS_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of a stretch of pixels: each channel's sum and sum of squares."""
    stretch, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, CHANNELS_BLOCK)[None, :]
    total = tl.zeros((ROWS, CHANNELS_BLOCK), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS_BLOCK), tl.float32)
    for turn in range(turns):
        rows = (stretch * turns + turn) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (rows < pixels) & (channels < CHANNELS)
        x = tl.load(x_ptr + (image * pixels + rows) * CHANNELS + channels, mask=inside, other=0.0).to(tl.float32)
        total += x
        squares += x * x
    place = sums_ptr + (image * tl.num_programs(0) + stretch) * 2 * CHANNELS + tl.arange(0, CHANNELS_BLOCK)
    tl.store(place, tl.sum(total, axis=0), mask=tl.arange(0, CHANNELS_BLOCK) < CHANNELS)
    tl.store(place + CHANNELS, tl.sum(squares, axis=0), mask=tl.arange(0, CHANNELS_BLOCK) < CHANNELS)


@triton.jit
def _scaled_silu(
    x_ptr, scale_ptr, shift_ptr, out_ptr, size,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    channels = offsets % CHANNELS
    x = tl.load(x_ptr + image * size + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + image * CHANNELS + channels, mask=inside, other=0.0)
    y = x * scale + tl.load(shift_ptr + image * CHANNELS + channels, mask=inside, other=0.0)
    tl.store(out_ptr + image * size + offsets, (y * tl.sigmoid(y)).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _added(x_ptr, more_ptr, bias_ptr, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    bias = tl.load(bias_ptr + offsets % CHANNELS, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(more_ptr + offsets, mask=inside, other=0.0).to(tl.float32) + bias
    tl.store(x_ptr + offsets, x.to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _softmax(x_ptr, out_ptr, size, scale, BLOCK: tl.constexpr):
    """Of a row, scaled: its largest and the sum in one pass, the rest in another, by powers of two."""
    row = tl.program_id(0).to(tl.int64) * size
    columns = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + columns < size
        x = tl.load(x_ptr + row + start + columns, mask=inside, other=float("-inf")) * scale
        higher = tl.maximum(largest, x)
        total = tl.where(inside, total * tl.exp2(largest - higher) + tl.exp2(x - higher), total)
        largest = higher
    most = tl.max(largest, axis=0)
    inverse = 1.0 / tl.sum(total * tl.exp2(largest - most), axis=0)
    for start in range(0, size, BLOCK):
        inside = start + columns < size
        x = tl.load(x_ptr + row + start + columns, mask=inside, other=0.0) * scale
        tl.store(
            out_ptr + row + start + columns, (tl.exp2(x - most) * inverse).to(out_ptr.dtype.element_ty), mask=inside
        )


def modulated_norm(
    tokens: torch.Tensor,
    updates: tuple[torch.Tensor, ...],
    gate: torch.Tensor | None,
    shift: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """See `fused_ops.modulated_norm`; scales only where `out_dtype` is float8."""
    batch, length, width = tokens.shape
    is_quantised = out_dtype == torch.float8_e4m3fn
    total = torch.empty_like(tokens) if updates else tokens
    out = torch.empty_like(tokens, dtype=out_dtype)
    quanta = tokens.new_empty(batch, length, 1, dtype=torch.float32) if is_quantised else None
    first = updates[0] if updates else tokens
    second = updates[1] if len(updates) > 1 else first
    gate = shift if gate is None else gate
    _modulated_norm[(batch * length,)](
        tokens, first, second, gate, shift, scale, total, out, out if quanta is None else quanta,
        length, gate.stride(0), shift.stride(0), scale.stride(0), eps,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), UPDATES=len(updates), QUANTISED=is_quantised,
        CLIPPED=tokens.dtype == torch.float16, num_warps=8,
    )  # fmt: skip
    return total, out, quanta


def place_heads(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weights: tuple[torch.Tensor, torch.Tensor],
    rope: tuple[torch.Tensor, torch.Tensor],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    first: int,
    eps: float,
    largest: torch.Tensor | None,
    offsets: torch.Tensor | None,
) -> None:
    """See `fused_ops.place_heads`."""
    query, key, value = heads
    batch, length, _ = query.shape
    _, _, num_shares, share, dim = out[0].shape
    num_heads = num_shares * share
    moves_value = value.data_ptr() != out[2].data_ptr()
    _heads[(batch * length,)](
        query, key, value, *weights, *rope, *out, query if largest is None else largest, length, query.stride(1),
        first, eps, query if offsets is None else offsets, *out[0].stride()[:3],
        HEADS=num_heads, HEADS_BLOCK=triton.next_power_of_2(num_heads), SHARE=share, DIM=dim, MOVES_VALUE=moves_value,
        OFFSETS=offsets is not None, num_warps=4,
    )  # fmt: skip


def quantised_rows(plain: torch.Tensor | None, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `fused_ops.quantised_rows`."""
    given = hidden if plain is None else plain
    assert given is not None
    batch, length = given.shape[:2]
    plain_width = 0 if plain is None else plain.shape[2]
    hidden_width = 0 if hidden is None else hidden.shape[2]
    out = given.new_empty(batch, length, plain_width + hidden_width, dtype=torch.float8_e4m3fn)
    quanta = given.new_empty(batch, length, 1, dtype=torch.float32)
    strides = (0, 0) if plain is None else (plain.stride(0), plain.stride(1))
    _quantised_rows[(batch * length,)](
        given if plain is None else plain, given if hidden is None else hidden, out, quanta, length, *strides,
        PLAIN=plain_width, PLAIN_BLOCK=triton.next_power_of_2(max(plain_width, 1)),
        HIDDEN=hidden_width, HIDDEN_BLOCK=triton.next_power_of_2(max(hidden_width, 1)),
        num_warps=16 if hidden_width else 4,
    )  # fmt: skip
    return out, quanta


_TURNS = 16
_TILE = 4096
_BLOCK = 4096
_PROGRAMS = 1024
"""As many as keep a GPU's memory busy."""


def group_norm_silu(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `fused_ops.group_norm_silu`."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    pixels = height * width
    channels_block = triton.next_power_of_2(channels)
    rows = max(1, _TILE // channels_block)
    turns = max(1, min(_TURNS, triton.cdiv(pixels, rows * _PROGRAMS)))
    stretches = triton.cdiv(pixels, rows * turns)
    sums = x.new_empty(batch, stretches, 2, channels, dtype=torch.float32)
    _channel_sums[(stretches, batch)](
        x, sums, pixels, turns, CHANNELS=channels, CHANNELS_BLOCK=channels_block, ROWS=rows, num_warps=8
    )
    # In float64: the variance is a difference of sums over millions of pixels.
    total, squares = sums.sum(dim=1, dtype=torch.float64).unbind(1)
    if before is not None:  # it is not in what was summed
        squares = squares + before * (2 * total + before.double() * pixels)
        total = total + before.double() * pixels
    of_groups = torch.stack((total, squares), dim=1).unflatten(-1, (groups, -1)).sum(-1) * (groups / channels / pixels)
    mean, square = of_groups.unbind(1)
    inverse = (square - mean * mean + eps).rsqrt()
    scale = inverse.repeat_interleave(channels // groups, dim=1) * weight
    shift = bias - mean.repeat_interleave(channels // groups, dim=1) * scale
    if before is not None:
        shift = shift + before * scale
    out = torch.empty_like(x)
    size = pixels * channels
    _scaled_silu[(triton.cdiv(size, _BLOCK), batch)](
        x, scale.float(), shift.float(), out, size, CHANNELS=channels, BLOCK=_BLOCK, num_warps=8
    )
    return out


def add_by_channel(x: torch.Tensor, more: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """See `fused_ops.add_by_channel`."""
    x, more = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, more))
    _added[(triton.cdiv(x.numel(), _BLOCK),)](
        x, more, bias, x.numel(), CHANNELS=x.shape[1], BLOCK=_BLOCK, num_warps=8
    )  # fmt: skip
    return x


_LOG2_E = 1.4426950408889634
_SCORE_BYTES = 3 * 2**29
"""Less than a picture's widest layers take; at 1024 x 1024 all rows."""
_ROW_BLOCK = 2048


def one_head_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """See `fused_ops.one_head_attention`."""
    _, length, width = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    rows = max(1, _SCORE_BYTES // (length * (4 + query.itemsize)))
    for image in range(len(query)):
        for start in range(0, length, rows):
            part = slice(start, start + rows)
            scores = torch.mm(query[image, part], key[image].t(), out_dtype=torch.float32)
            shares = torch.empty_like(scores, dtype=query.dtype)
            _softmax[(len(scores),)](
                scores, shares, length, _LOG2_E / width**0.5, BLOCK=min(_ROW_BLOCK, triton.next_power_of_2(length)),
                num_warps=8,
            )  # fmt: skip
            torch.mm(shares, value[image], out=out[image, part])
    return out
