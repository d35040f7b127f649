"""The fused operations of `fused_ops.py` as Triton kernels. Only imported on machines with a GPU.

All kernels are bound by memory bandwidth. Each reads its inputs once (the softmax: twice), computes in float32 and
rounds when it stores its outputs. A kernel over tokens runs one program per token. The last dimension (the channels, if
the memory is channels last) has stride 1.

Row indices are int64: a row times its width can exceed 2**31 elements. `tl.arange` needs a power of two, so a block may
be wider than a row: masked lanes do not read the next row, and count as 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_FP8_MAX = tl.constexpr(448.0)  # largest value of float8_e4m3fn
_TINY = tl.constexpr(1e-12)  # a row of zeros must not divide by zero


@triton.jit
def _modulated_norm_kernel(
    x_ptr, update1_ptr, update2_ptr, gate_ptr, shift_ptr, scale_ptr, sum_ptr, out_ptr, row_scale_ptr,
    tokens, gate_stride, shift_stride, scale_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, NUM_UPDATES: tl.constexpr, QUANTIZED: tl.constexpr, CLIPPED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    image = row // tokens  # gate, shift and scale are per image: slices of a row of all modulations, so with strides
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(x_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if NUM_UPDATES > 0:
        update = tl.load(update1_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        if NUM_UPDATES > 1:
            update += tl.load(update2_ptr + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + image * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
        x += gate * update
        if CLIPPED:  # the stream of FLUX exceeds float16 in some blocks; the library clips it to the same range
            x = tl.clamp(x, -65504.0, 65504.0)
        # The norm must see the stream as it is stored, as in the library: so round first, and use that value.
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * WIDTH + columns, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, axis=0) / WIDTH
    # Masked lanes are 0, which is right for the sum above. In the variance each would add mean**2: set them to 0 again.
    centered = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centered * centered, axis=0) / WIDTH
    shift = tl.load(shift_ptr + image * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + image * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    normed = centered * tl.rsqrt(variance + eps) * (1.0 + scale) + shift
    if QUANTIZED:  # the whole row is in registers: its largest magnitude costs no second pass over memory
        row_scale = tl.maximum(tl.max(tl.abs(normed), axis=0), _TINY) / _FP8_MAX
        tl.store(row_scale_ptr + row, row_scale)
        normed = normed * (1.0 / row_scale)
    tl.store(out_ptr + row * WIDTH + columns, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rope_store(x_ptr, weight_ptr, out_ptr, offsets, out_offsets, inside, cosine, sine, eps,
                     HEADS: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """RMS norm of each head, then rotate its pairs of neighboring channels by the token's angles, and store it."""
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / DIM + eps)
    weight = tl.load(weight_ptr + tl.arange(0, DIM)).to(tl.float32)
    normed = x * inverse[:, None] * weight[None, :]
    # FLUX rotates channels 2i and 2i + 1 together: split them into even and odd channels, and interleave them again.
    even, odd = tl.split(tl.reshape(normed, (HEADS, DIM // 2, 2)))
    rotated = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
    rotated = tl.reshape(rotated, (HEADS, DIM))
    if out_ptr.dtype.element_ty == tl.float8e4nv:  # e4m3fn has no infinity: values beyond its range must saturate
        rotated = tl.clamp(rotated, -_FP8_MAX, _FP8_MAX)
    tl.store(out_ptr + out_offsets, rotated.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _qk_norm_rope_kernel(
    query_ptr, key_ptr, value_ptr, query_weight_ptr, key_weight_ptr, cosine_ptr, sine_ptr,
    query_out_ptr, key_out_ptr, value_out_ptr, amax_ptr, tokens, row_stride, first_token, eps,
    offsets_ptr, out_batch_stride, out_row_stride, group_stride,
    HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr, GROUP_HEADS: tl.constexpr, DIM: tl.constexpr,
    COPY_VALUE: tl.constexpr, HAS_OFFSETS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    position = first_token + row % tokens  # among the joint tokens, which `out` and the RoPE tables have
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    inside = heads < HEADS
    channels = tl.arange(0, DIM)[None, :]
    # The inputs may be three column ranges of one product: rows are `row_stride` apart, images follow without a gap.
    offsets = row * row_stride + heads * DIM + channels
    out_row = (row // tokens) * out_batch_stride + position * out_row_stride
    out_offsets = out_row + (heads % GROUP_HEADS) * DIM + channels
    if HAS_OFFSETS:  # each head group is in another allocation: the memory of the rank that attends with it
        out_offsets += tl.load(offsets_ptr + heads // GROUP_HEADS, mask=inside, other=0)
    else:
        out_offsets += (heads // GROUP_HEADS) * group_stride
    pairs = 2 * tl.arange(0, DIM // 2)[None, :]  # the tables hold each angle twice, once for each channel of a pair
    cosine = tl.load(cosine_ptr + position * DIM + pairs)
    sine = tl.load(sine_ptr + position * DIM + pairs)
    # `out` may be the input itself: a program reads and writes only the heads of its own token.
    _norm_rope_store(query_ptr, query_weight_ptr, query_out_ptr, offsets, out_offsets, inside, cosine, sine, eps,
                     HEADS_BLOCK, DIM)  # fmt: skip
    _norm_rope_store(key_ptr, key_weight_ptr, key_out_ptr, offsets, out_offsets, inside, cosine, sine, eps,
                     HEADS_BLOCK, DIM)  # fmt: skip
    if COPY_VALUE:
        value = tl.load(value_ptr + offsets, mask=inside, other=0.0)
        if value_out_ptr.dtype.element_ty == tl.float8e4nv:
            value = value.to(tl.float32)
            # Of the image, before the clamp: the true maximum. It does not depend on the order in which programs come.
            tl.atomic_max(amax_ptr + row // tokens, tl.max(tl.abs(value)))
            value = tl.clamp(value, -_FP8_MAX, _FP8_MAX)
        tl.store(value_out_ptr + out_offsets, value.to(value_out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _quantize_rows_kernel(
    plain_ptr, hidden_ptr, out_ptr, row_scale_ptr, tokens, plain_batch_stride, plain_row_stride,
    PLAIN: tl.constexpr, PLAIN_BLOCK: tl.constexpr, HIDDEN: tl.constexpr, HIDDEN_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    image, token = row // tokens, row % tokens
    amax = 0.0
    if PLAIN > 0:
        plain_columns = tl.arange(0, PLAIN_BLOCK)
        # `plain` may be some tokens of each image of a larger tensor: then there are gaps between the images.
        plain_row = plain_ptr + image * plain_batch_stride + token * plain_row_stride
        plain = tl.load(plain_row + plain_columns, mask=plain_columns < PLAIN, other=0.0).to(tl.float32)
        amax = tl.max(tl.abs(plain), axis=0)
    if HIDDEN > 0:
        columns = tl.arange(0, HIDDEN_BLOCK)
        x = tl.load(hidden_ptr + row * HIDDEN + columns, mask=columns < HIDDEN, other=0.0).to(tl.float32)
        # The tanh approximation of GELU, as x times a sigmoid: 1 + tanh(u) = 2 sigmoid(2 u)
        active = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        amax = tl.maximum(amax, tl.max(tl.abs(active), axis=0))
    # One scale for both parts: the matrix product reads them as one row.
    row_scale = tl.maximum(amax, _TINY) / _FP8_MAX
    tl.store(row_scale_ptr + row, row_scale)
    inverse = 1.0 / row_scale
    out_row = out_ptr + row * (PLAIN + HIDDEN)
    if PLAIN > 0:
        tl.store(out_row + plain_columns, (plain * inverse).to(out_ptr.dtype.element_ty), mask=plain_columns < PLAIN)
    if HIDDEN > 0:
        tl.store(out_row + PLAIN + columns, (active * inverse).to(out_ptr.dtype.element_ty), mask=columns < HIDDEN)


@triton.jit
def _channel_sums_kernel(
    x_ptr, sums_ptr, pixels, iterations,
    CHANNELS: tl.constexpr, CHANNELS_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum and sum of squares of each channel over one chunk of the pixels of an image, `ROWS` pixels at a time.

    Each program stores its own partial sums. Atomic additions would add them in a different order in each run.
    """
    chunk, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, CHANNELS_BLOCK)[None, :]
    total = tl.zeros((ROWS, CHANNELS_BLOCK), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS_BLOCK), tl.float32)
    for iteration in range(iterations):
        rows = (chunk * iterations + iteration) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (rows < pixels) & (channels < CHANNELS)  # the last chunk may reach beyond the image
        # Channels last: the channels of a pixel are contiguous, pixels are CHANNELS apart.
        x = tl.load(x_ptr + (image * pixels + rows) * CHANNELS + channels, mask=inside, other=0.0).to(tl.float32)
        total += x
        squares += x * x
    # `sums` is (B, chunks, 2, channels): the sums of a chunk, then its sums of squares.
    sums = sums_ptr + (image * tl.num_programs(0) + chunk) * 2 * CHANNELS + tl.arange(0, CHANNELS_BLOCK)
    tl.store(sums, tl.sum(total, axis=0), mask=tl.arange(0, CHANNELS_BLOCK) < CHANNELS)
    tl.store(sums + CHANNELS, tl.sum(squares, axis=0), mask=tl.arange(0, CHANNELS_BLOCK) < CHANNELS)


@triton.jit
def _scale_silu_kernel(
    x_ptr, scale_ptr, shift_ptr, out_ptr, size,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """silu(x * scale + shift) of `size` elements of each image, channels last; scale and shift (B, channels)."""
    image = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    channels = offsets % CHANNELS
    x = tl.load(x_ptr + image * size + offsets, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + image * CHANNELS + channels, mask=inside, other=0.0)
    y = x * scale + tl.load(shift_ptr + image * CHANNELS + channels, mask=inside, other=0.0)
    tl.store(out_ptr + image * size + offsets, (y * tl.sigmoid(y)).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_by_channel_kernel(x_ptr, residual_ptr, bias_ptr, size, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """x += residual + bias of all images at once, channels last. In place: a program touches only its own elements."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    bias = tl.load(bias_ptr + offsets % CHANNELS, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32) + bias
    tl.store(x_ptr + offsets, x.to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _softmax_kernel(x_ptr, out_ptr, size, scale, BLOCK: tl.constexpr):
    """Softmax of a row with online normalization: maximum and sum in one pass, the weights in another.

    Exponentials have base 2: `scale` includes log2(e).
    """
    row = tl.program_id(0).to(tl.int64) * size
    columns = tl.arange(0, BLOCK)
    # Each lane has a maximum and a sum of its own; they are combined once, after the loop.
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + columns < size
        x = tl.load(x_ptr + row + start + columns, mask=inside, other=float("-inf")) * scale
        higher = tl.maximum(largest, x)
        # A lane that has had no element yet computes inf - inf = NaN here: the mask keeps its sum at 0.
        total = tl.where(inside, total * tl.exp2(largest - higher) + tl.exp2(x - higher), total)
        largest = higher
    row_max = tl.max(largest, axis=0)
    inverse = 1.0 / tl.sum(total * tl.exp2(largest - row_max), axis=0)
    for start in range(0, size, BLOCK):
        inside = start + columns < size
        x = tl.load(x_ptr + row + start + columns, mask=inside, other=0.0) * scale
        tl.store(
            out_ptr + row + start + columns, (tl.exp2(x - row_max) * inverse).to(out_ptr.dtype.element_ty), mask=inside
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
    """See `fused_ops.modulated_norm`.

    Returns:
        the stream with its updates added, the modulated norm in `out_dtype`, and its row scales: float32 (B, tokens, 1)
        if `out_dtype` is float8_e4m3fn, else None.
    """
    batch, length, width = tokens.shape
    is_quantized = out_dtype == torch.float8_e4m3fn
    total = torch.empty_like(tokens) if updates else tokens
    out = torch.empty_like(tokens, dtype=out_dtype)
    row_scales = tokens.new_empty(batch, length, 1, dtype=torch.float32) if is_quantized else None
    # A launch needs a pointer for each argument. Where a constexpr says that one is not used, any tensor does.
    update1 = updates[0] if updates else tokens
    update2 = updates[1] if len(updates) > 1 else update1
    gate = shift if gate is None else gate
    _modulated_norm_kernel[(batch * length,)](
        tokens, update1, update2, gate, shift, scale, total, out, out if row_scales is None else row_scales,
        length, gate.stride(0), shift.stride(0), scale.stride(0), eps,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), NUM_UPDATES=len(updates), QUANTIZED=is_quantized,
        CLIPPED=tokens.dtype == torch.float16, num_warps=8,
    )  # fmt: skip
    return total, out, row_scales


def qk_norm_rope(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weights: tuple[torch.Tensor, torch.Tensor],
    rope: tuple[torch.Tensor, torch.Tensor],
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    first_token: int,
    eps: float,
    amax: torch.Tensor | None,
    offsets: torch.Tensor | None,
) -> None:
    """See `fused_ops.qk_norm_rope`; `out` in groups of heads, each (B, joint tokens, groups, heads of a group, dim)."""
    query, key, value = heads
    batch, length, _ = query.shape
    _, _, num_groups, group_heads, dim = out[0].shape
    num_heads = num_groups * group_heads
    if amax is None and out[2].dtype == torch.float8_e4m3fn:
        amax = value.new_zeros(batch, dtype=torch.float32)  # the kernel writes it, even if nobody reads it
    copy_value = value.data_ptr() != out[2].data_ptr()  # in place, values are already where they should be
    _qk_norm_rope_kernel[(batch * length,)](
        query, key, value, *weights, *rope, *out, query if amax is None else amax, length, query.stride(1),
        first_token, eps, query if offsets is None else offsets, *out[0].stride()[:3],
        HEADS=num_heads, HEADS_BLOCK=triton.next_power_of_2(num_heads), GROUP_HEADS=group_heads, DIM=dim,
        COPY_VALUE=copy_value, HAS_OFFSETS=offsets is not None, num_warps=4,
    )  # fmt: skip


def quantize_rows(plain: torch.Tensor | None, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `fused_ops.quantize_rows`: the values and the row scales."""
    given = hidden if plain is None else plain
    assert given is not None
    batch, length = given.shape[:2]
    plain_width = 0 if plain is None else plain.shape[2]
    hidden_width = 0 if hidden is None else hidden.shape[2]
    out = given.new_empty(batch, length, plain_width + hidden_width, dtype=torch.float8_e4m3fn)
    row_scales = given.new_empty(batch, length, 1, dtype=torch.float32)
    strides = (0, 0) if plain is None else (plain.stride(0), plain.stride(1))
    _quantize_rows_kernel[(batch * length,)](
        given if plain is None else plain, given if hidden is None else hidden, out, row_scales, length, *strides,
        PLAIN=plain_width, PLAIN_BLOCK=triton.next_power_of_2(max(plain_width, 1)),
        HIDDEN=hidden_width, HIDDEN_BLOCK=triton.next_power_of_2(max(hidden_width, 1)),
        num_warps=16 if hidden_width else 4,
    )  # fmt: skip
    return out, row_scales


_MAX_ITERATIONS = 16
_TILE = 4096
"""Elements (pixels times channels) that `_channel_sums_kernel` reads in one iteration."""
_BLOCK = 4096
_PROGRAMS = 1024
"""Programs that are enough to keep a GPU's memory busy; with more pixels, each program does more iterations."""


def group_norm_silu(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    pre_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `fused_ops.group_norm_silu`."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    pixels = height * width
    channels_block = triton.next_power_of_2(channels)
    rows = max(1, _TILE // channels_block)
    iterations = max(1, min(_MAX_ITERATIONS, triton.cdiv(pixels, rows * _PROGRAMS)))
    chunks = triton.cdiv(pixels, rows * iterations)
    sums = x.new_empty(batch, chunks, 2, channels, dtype=torch.float32)
    _channel_sums_kernel[(chunks, batch)](
        x, sums, pixels, iterations, CHANNELS=channels, CHANNELS_BLOCK=channels_block, ROWS=rows, num_warps=8
    )
    # In float64: the variance is a difference of sums over millions of pixels.
    total, squares = sums.sum(dim=1, dtype=torch.float64).unbind(1)
    # The kernel summed x without `pre_bias` b. Over n pixels: sum((x + b)**2) = sum(x**2) + b * (2 * sum(x) + n * b).
    if pre_bias is not None:
        squares = squares + pre_bias * (2 * total + pre_bias.double() * pixels)
        total = total + pre_bias.double() * pixels
    of_groups = torch.stack((total, squares), dim=1).unflatten(-1, (groups, -1)).sum(-1) * (groups / channels / pixels)
    mean, square = of_groups.unbind(1)
    inverse = (square - mean * mean + eps).rsqrt()
    # Norm, weight, bias and `pre_bias` become one scale and one shift per image and channel.
    scale = inverse.repeat_interleave(channels // groups, dim=1) * weight
    shift = bias - mean.repeat_interleave(channels // groups, dim=1) * scale
    if pre_bias is not None:
        shift = shift + pre_bias * scale
    out = torch.empty_like(x)
    size = pixels * channels
    _scale_silu_kernel[(triton.cdiv(size, _BLOCK), batch)](
        x, scale.float(), shift.float(), out, size, CHANNELS=channels, BLOCK=_BLOCK, num_warps=8
    )
    return out


def add_by_channel(x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """See `fused_ops.add_by_channel`."""
    x, residual = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, residual))
    _add_by_channel_kernel[(triton.cdiv(x.numel(), _BLOCK),)](
        x, residual, bias, x.numel(), CHANNELS=x.shape[1], BLOCK=_BLOCK, num_warps=8
    )  # fmt: skip
    return x


_LOG2_E = 1.4426950408889634
_SCORE_BYTES = 3 * 2**29
"""Memory for scores and weights at a time. The widest layers of the VAE take more; at 1024 x 1024 all rows fit."""
_ROW_BLOCK = 2048


def one_head_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """See `fused_ops.one_head_attention`."""
    _, length, width = query.shape
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    rows = max(1, _SCORE_BYTES // (length * (4 + query.itemsize)))  # float32 scores, and weights in the query's dtype
    for image in range(len(query)):
        for start in range(0, length, rows):
            part = slice(start, start + rows)
            scores = torch.mm(query[image, part], key[image].t(), out_dtype=torch.float32)
            weights = torch.empty_like(scores, dtype=query.dtype)
            _softmax_kernel[(len(scores),)](
                scores, weights, length, _LOG2_E / width**0.5, BLOCK=min(_ROW_BLOCK, triton.next_power_of_2(length)),
                num_warps=8,
            )  # fmt: skip
            torch.mm(weights, value[image], out=out[image, part])
    return out
