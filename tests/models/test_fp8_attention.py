"""FP8 attention scales each image by itself, so that the images of a batch do not change each other."""

from __future__ import annotations

import pytest
import torch

from fluxexp.models.kernels.fp8_attention import Fp8Attention, why_unavailable

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def attend(images: list[tuple[torch.Tensor, ...]], device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Values and scales of each image's result, of one batch."""
    heads = [torch.stack(parts).to(device) for parts in zip(*images, strict=True)]
    amax = heads[2].float().abs().flatten(1).amax(dim=1)
    query, key, value = (part.clamp(-448, 448).to(torch.float8_e4m3fn) for part in heads)
    found = Fp8Attention()(query, key, value, amax)
    return [(found.values[i].cpu().float(), found.scales[i].cpu()) for i in range(len(images))]


def image(value_size: float, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(128, 2, 128, generator=generator) for _ in range(3))
    return query, key, value * value_size


def require_kernel(device: str) -> None:
    if reason := why_unavailable(torch.device(device)):
        pytest.skip(reason)


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_does_not_depend_on_its_batch(device: str) -> None:
    require_kernel(device)
    small, large = image(0.01, seed=1), image(100.0, seed=2)
    (alone,) = attend([small], device)
    for together in (attend([small, large], device)[0], attend([large, small], device)[1]):
        assert torch.equal(together[0], alone[0])
        assert torch.equal(together[1], alone[1])


@pytest.mark.parametrize("device", DEVICES)
def test_small_values_beside_large_ones_keep_their_precision(device: str) -> None:
    require_kernel(device)
    small = image(0.01, seed=1)
    values, scales = attend([small, image(100.0, seed=2)], device)[0]
    query, key, value = (part.to(torch.float8_e4m3fn).float().transpose(0, 1) for part in small)
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)
    error = (values * scales - exact).norm() / exact.norm()
    assert error < 0.05
