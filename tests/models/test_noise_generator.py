"""The generator of a task's noise uses all bits of its seed."""

from __future__ import annotations

import pytest
import torch

from fluxexp.models.flux1.latents import noise_generator


def noise(seed: int) -> torch.Tensor:
    return torch.randn(64, generator=noise_generator(seed))


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_a_small_seed_gives_the_noise_of_manual_seed(seed: int) -> None:
    assert torch.equal(noise(seed), torch.randn(64, generator=torch.Generator().manual_seed(seed)))


def test_every_bit_of_the_seed_counts() -> None:
    seeds = [5, *(5 + 2**bit for bit in range(3, 63))]
    assert len({tuple(noise(seed).tolist()) for seed in seeds}) == len(seeds)
    assert torch.equal(noise(2**62 + 1), noise(2**62 + 1))


def test_large_seeds_give_standard_normal_noise() -> None:
    drawn = torch.stack([torch.randn(20_000, generator=noise_generator(7 + (seed << 32))) for seed in range(8)])
    assert drawn.mean().abs() < 0.02
    assert drawn.std() == pytest.approx(1, abs=0.02)
    off_diagonal = torch.corrcoef(drawn) - torch.eye(8)
    assert off_diagonal.abs().max() < 0.05, "seeds that differ only in their upper bits are independent"
