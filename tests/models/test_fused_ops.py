"""Fused operations compute what the operations of the library compute; GPU kernels compute what the CPU versions do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.embeddings import apply_rotary_emb
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxexp.models.kernels import fused_ops
from fluxexp.models.kernels.fp8_linear import Fp8Linear, quantize_linears
from fluxexp.models.kernels.fused_ops import Quantized, Residual

WIDTHS = [160, 3072]


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stream(updates: int, width: int = 160, dtype: torch.dtype = torch.float32) -> Residual:
    parts = tuple(drawn(2, 5, width, dtype=dtype, seed=9 + number) for number in range(updates))
    gates = drawn(2, 3 * width, dtype=dtype, seed=7)  # a gate is a slice of all modulations
    return Residual(drawn(2, 5, width, dtype=dtype), parts, gates[:, width : 2 * width] if updates else None)


def modulation(width: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    shift, scale, _ = drawn(2, 3 * width, dtype=dtype, seed=5).chunk(3, dim=1)
    return shift, scale


def heads(dtype: torch.dtype, count: int, dim: int) -> dict[str, Any]:
    """Arguments of `qk_norm_rope`: five tokens, the third to the seventh of eight joint tokens."""
    return {
        "heads": tuple(drawn(2, 5, count * dim, dtype=dtype, seed=seed) for seed in range(3)),
        "weights": tuple(1 + 0.1 * drawn(dim, dtype=dtype, seed=seed) for seed in (3, 4)),
        "rope": tuple(drawn(8, dim // 2, seed=seed).repeat_interleave(2, dim=1) for seed in (5, 6)),
        "out": tuple(torch.full((2, 8, count, dim), torch.nan, dtype=dtype) for _ in range(3)),
        "first_token": 2,
        "eps": 1e-6,
    }


def rows(quantized: Quantized) -> torch.Tensor:
    return quantized.values.float() * quantized.scales


def moved(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Residual):
        return Residual(*(moved(getattr(value, name), device) for name in ("tokens", "updates", "gate")))
    return tuple(moved(item, device) for item in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_a_modulated_norm_adds_the_update_first(updates: int) -> None:
    given_stream, (shift, scale) = stream(updates), modulation(160)
    tokens, normed = fused_ops.modulated_norm(given_stream, shift, scale, 1e-6, is_quantized=False)
    expected = given_stream.tokens
    if given_stream.gate is not None:
        expected = expected + given_stream.gate[:, None] * sum(given_stream.updates)
    torch.testing.assert_close(tokens, expected)
    assert isinstance(normed, torch.Tensor)
    torch.testing.assert_close(normed, F.layer_norm(expected, (160,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None])


def test_heads_are_normalized_rotated_and_written_to_their_tokens() -> None:
    arguments = heads(torch.float32, 5, 32)
    fused_ops.qk_norm_rope(**arguments)
    for number, place in enumerate(arguments["out"]):
        assert place[:, :2].isnan().all()
        assert place[:, 7:].isnan().all()
        expected = arguments["heads"][number].unflatten(-1, (5, 32))
        if number < 2:
            expected = F.rms_norm(expected, (32,), arguments["weights"][number], 1e-6)
            expected = apply_rotary_emb(expected, tuple(t[2:7] for t in arguments["rope"]), sequence_dim=1)
        torch.testing.assert_close(place[:, 2:7], expected)


def in_groups(arguments: dict[str, Any], count: int, dim: int) -> torch.Tensor:
    """Let `qk_norm_rope` write two groups of heads, each with queries, keys and values of a token side by side."""
    buffer = torch.full((2, 2, 8, 3, count // 2, dim), torch.nan)
    buffer = buffer.to(arguments["heads"][0].device, arguments["heads"][0].dtype)
    arguments["out"] = tuple(buffer[:, :, :, number].permute(1, 2, 0, 3, 4) for number in range(3))
    return buffer


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_heads_may_be_written_in_groups(device: str) -> None:
    plain = {name: moved(value, device) for name, value in heads(torch.float32, 6, 32).items()}
    grouped = dict(plain)
    buffer = in_groups(grouped, 6, 32)
    fused_ops.qk_norm_rope(**plain)
    fused_ops.qk_norm_rope(**grouped)
    for number, place in enumerate(plain["out"]):
        found = torch.cat([group[:, :, number] for group in buffer], dim=2)
        torch.testing.assert_close(found, place, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_heads_may_be_columns_of_one_product_and_be_overwritten(device: str) -> None:
    plain = {name: moved(value, device) for name, value in heads(torch.float32, 6, 32).items()}
    product = torch.cat(plain["heads"], dim=2)
    columns = product.chunk(3, dim=2)
    rotated = {**plain, "rope": tuple(table[2:7] for table in plain["rope"]), "first_token": 0}
    expected, placed = (tuple(torch.empty(2, 5, 6, 32, device=device) for _ in range(3)) for _ in range(2))
    fused_ops.qk_norm_rope(**{**rotated, "out": expected})
    fused_ops.qk_norm_rope(**{**rotated, "heads": columns, "out": placed})
    fused_ops.qk_norm_rope(**{**rotated, "heads": columns, "out": tuple(part.view(2, 5, 6, 32) for part in columns)})
    for found, within, place in zip(placed, columns, expected, strict=True):
        torch.testing.assert_close(found, place, rtol=0, atol=0)
        torch.testing.assert_close(within.view(2, 5, 6, 32), place, rtol=0, atol=0)


@given(st.floats(1e-3, 1e4), st.integers(1, 40))
@settings(max_examples=30)
def test_quantized_rows_are_close_to_the_original(size: float, features: int) -> None:
    x = size * drawn(1, 3, features)
    found = rows(fused_ops.quantize_rows(x))
    largest = x.abs().amax(dim=-1, keepdim=True)
    # With three bits of mantissa, half a step is 1/16 of a value. Subnormal values have an absolute step instead.
    assert ((found - x).abs() <= x.abs() / 16 + largest / 448 / 2**9).all()


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(rows(fused_ops.quantize_rows(torch.zeros(1, 2, 16))), torch.zeros(1, 2, 16))


def test_rows_of_two_parts_share_a_scale() -> None:
    plain, hidden = drawn(2, 3, 16), 5 * drawn(2, 3, 32, seed=1)
    found = fused_ops.quantize_rows(plain, hidden)
    both = torch.cat([plain, F.gelu(hidden, approximate="tanh")], dim=-1)
    assert torch.equal(rows(found), rows(fused_ops.quantize_rows(both)))


@pytest.mark.parametrize("bias", [True, False])
def test_an_fp8_linear_layer_is_close_to_the_layer(bias: bool) -> None:
    layer = torch.nn.Linear(64, 48, bias=bias)
    x = drawn(2, 5, 64)
    expected = layer(x)
    found = Fp8Linear.quantized(layer)(x)
    assert found.shape == expected.shape
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(found, expected)


def test_norms_and_layers_of_unsupported_sizes_are_not_quantized() -> None:
    module = torch.nn.ModuleDict(
        {
            "norm": torch.nn.ModuleDict({"linear": torch.nn.Linear(16, 16)}),
            "odd": torch.nn.Linear(16, 15),
            "rest": torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU()),
        }
    )
    quantize_linears(module)
    assert [name for name, part in module.named_modules() if isinstance(part, Fp8Linear)] == ["rest.0"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("updates", [0, 1, 2])
@pytest.mark.parametrize("is_quantized", [False, True])
def test_gpu_modulated_norm(updates: int, width: int, dtype: torch.dtype, is_quantized: bool) -> None:
    arguments = (stream(updates, width, dtype), *modulation(width, dtype), 1e-6)
    tokens, normed = fused_ops.modulated_norm(*moved(arguments, "cuda"), is_quantized=is_quantized)
    same_tokens, same_normed = fused_ops.modulated_norm(*arguments, is_quantized=is_quantized)
    _assert_near(tokens, same_tokens)
    _assert_near(normed, same_normed)


def test_fp8_heads_saturate_and_report_the_largest_value() -> None:
    arguments = heads(torch.float32, 5, 32) | {"amax": torch.zeros(2)}
    arguments["heads"][2][1, 3, 7] = -1000.0
    arguments["out"] = tuple(place.to(torch.float8_e4m3fn) for place in arguments["out"])
    fused_ops.qk_norm_rope(**arguments)
    assert arguments["amax"].tolist() == [arguments["heads"][2][0].abs().max().item(), 1000.0]
    assert arguments["out"][2][1, 5, 0, 7].float() == -448.0


@pytest.mark.gpu
@pytest.mark.parametrize("out", [None, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("count", "dim"), [(5, 32), (24, 128)])
def test_gpu_qk_norm_rope(count: int, dim: int, dtype: torch.dtype, out: torch.dtype | None) -> None:
    arguments = heads(dtype, count, dim) | {"amax": torch.zeros(2)}
    arguments["out"] = tuple(place.to(out or dtype) for place in arguments["out"])
    moved_arguments = {name: moved(value, "cuda") for name, value in arguments.items()}
    fused_ops.qk_norm_rope(**arguments)
    fused_ops.qk_norm_rope(**moved_arguments)
    for place, found in zip(arguments["out"], moved_arguments["out"], strict=True):
        _assert_near(found, place)
    if out is not None:
        assert torch.equal(moved_arguments["amax"].cpu(), arguments["amax"])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "groups", "side"), [(80, 8, 31), (512, 32, 64), (128, 32, 300)])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("has_pre_bias", [False, True])
def test_gpu_group_norm_silu(
    channels: int, groups: int, side: int, dtype: torch.dtype, order: torch.memory_format, has_pre_bias: bool
) -> None:
    x = (3 + drawn(2, channels, side, side + 5, dtype=dtype)).contiguous(memory_format=order)
    weight, bias = 1 + 0.1 * drawn(channels, dtype=dtype), drawn(channels, dtype=dtype, seed=2)
    pre_bias = 2 + drawn(channels, dtype=dtype, seed=3) if has_pre_bias else None
    floats = tuple(tensor if tensor is None else tensor.float() for tensor in (weight, bias, pre_bias))
    expected = fused_ops.group_norm_silu(x.float(), groups, floats[0], floats[1], 1e-6, floats[2])  # type: ignore[arg-type]
    gpu_pre_bias = None if pre_bias is None else pre_bias.cuda()
    found = fused_ops.group_norm_silu(x.cuda(), groups, weight.cuda(), bias.cuda(), 1e-6, gpu_pre_bias)
    _assert_near(found, expected.to(dtype))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_add_by_channel(dtype: torch.dtype, device: str) -> None:
    x, residual = (drawn(2, 80, 9, 7, dtype=dtype, seed=seed) for seed in (1, 2))
    bias = drawn(80, dtype=dtype, seed=3)
    expected = x.float() + residual.float() + bias.float()[:, None, None]
    x = x.contiguous(memory_format=torch.channels_last)
    found = fused_ops.add_by_channel(x.to(device), residual.to(device), bias.to(device))
    _assert_near(found, expected.to(dtype))


def test_a_group_norm_adds_a_pending_bias() -> None:
    x, bias = drawn(2, 8, 5, 6), drawn(8, seed=1)
    weight, shift = 1 + 0.1 * drawn(8, seed=2), drawn(8, seed=3)
    expected = F.silu(F.group_norm(x + bias[:, None, None], 4, weight, shift, 1e-6))
    torch.testing.assert_close(fused_ops.group_norm_silu(x, 4, weight, shift, 1e-6, bias), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1000, 20000])
@pytest.mark.parametrize("length", [77, 4096, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpu_one_head_attention(dtype: torch.dtype, length: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxexp.models.kernels import triton_kernels

    monkeypatch.setattr(triton_kernels, "_SCORE_BYTES", rows * length * 6)
    product = (2 * drawn(2, length, 3 * 512, dtype=dtype)).cuda()
    query, key, value = product.chunk(3, dim=-1)
    found = fused_ops.one_head_attention(query, key, value)
    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    _assert_near(found, expected.to(dtype).cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("widths", [(160, 640), (3072, 12288), (0, 12288), (3072, 0)])
def test_gpu_quantize_rows(widths: tuple[int, int], dtype: torch.dtype) -> None:
    all_tokens = drawn(2, 9, max(widths[0], 1), dtype=dtype)
    arguments = (
        all_tokens[:, 4:]
        if widths[0]
        else None,  # the image's part of the output of attention: images are not adjacent
        drawn(2, 5, widths[1], dtype=dtype, seed=1) if widths[1] else None,
    )
    _assert_near(fused_ops.quantize_rows(*moved(arguments, "cuda")), fused_ops.quantize_rows(*arguments))


@pytest.mark.gpu
def test_gpu_fp8_linear() -> None:
    layer, x = torch.nn.Linear(256, 512).bfloat16(), drawn(2, 5, 256, dtype=torch.bfloat16)
    expected = Fp8Linear.quantized(layer)(x)
    found = Fp8Linear.quantized(layer.cuda())(x.cuda())
    assert (found.cpu() - expected).float().norm() < 0.01 * expected.float().norm()


@pytest.mark.gpu
def test_gpu_linear_gelu() -> None:
    layer, x = torch.nn.Linear(256, 512).cuda().bfloat16(), drawn(2, 5, 256, dtype=torch.bfloat16).cuda()
    expected = F.gelu(F.linear(x.float(), layer.weight.float(), layer.bias.float()), approximate="tanh")
    _assert_near(fused_ops.linear_gelu(x, layer.weight, layer.bias).float(), expected.bfloat16().float().cpu())


def _assert_near(found: Any, expected: Any) -> None:
    """Equal up to roundings of some last bits; NaN exactly where it is expected."""
    if isinstance(expected, Quantized):
        torch.testing.assert_close(found.scales.cpu(), expected.scales, rtol=1e-2, atol=0)
        found, expected = rows(found), rows(expected)
    found, expected = found.float().cpu(), expected.float()
    assert torch.equal(found.isnan(), expected.isnan())
    assert (found - expected).nan_to_num().norm() < 5e-3 * expected.nan_to_num().norm()
