"""Measures MagCache's ratios: how the magnitude of what all blocks add changes from step to step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from fluxexp.errors import ModelError
from fluxexp.models.base import Job
from fluxexp.models.flux1.denoiser import Denoiser, HoistedDenoiser
from fluxexp.models.step_cache.step_caches import Blocks, CachedSteps


class _Denoising(Protocol):
    denoiser: Denoiser

    def denoise(self, jobs: Sequence[Job]) -> object: ...


def measure_ratios(model: _Denoising, batches: Iterable[Sequence[Job]]) -> list[float]:
    """The ratio at each step of the batches' common schedule: the mean over their images. The first ratio is 1.

    Raises:
        ModelError: the model's blocks cannot be called one by one, or its values are not finite.
    """
    denoiser = model.denoiser
    if not isinstance(denoiser, HoistedDenoiser):
        raise ModelError("MagCache's ratios are measured block by block: use optimization.hoist_constants=true")
    measuring = _MeasuringCache()
    model.denoiser = denoiser.with_step_cache(measuring)
    try:
        for batch in batches:
            model.denoise(batch)
    finally:
        model.denoiser = denoiser
    return measuring.ratios()


class _MeasuringCache:
    """A step cache that skips nothing and only measures."""

    def __init__(self) -> None:
        self._batches: list[_MeasuredSteps] = []

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """See `StepCache`."""
        self._batches.append(_MeasuredSteps(batch))
        return self._batches[-1]

    def ratios(self) -> list[float]:
        """Mean over all images so far, float of shape (steps,)."""
        found = torch.cat([torch.stack(steps.ratios) for steps in self._batches], dim=1).double().mean(dim=1)
        if not torch.isfinite(found).all():
            raise ModelError(
                "MagCache's ratios cannot be measured: the model's values are not finite (NaN or infinity)"
            )
        return [round(ratio, 5) for ratio in found.tolist()]


class _MeasuredSteps:
    def __init__(self, batch: int) -> None:
        self.computed_steps = [0] * batch
        self.ratios: list[torch.Tensor] = []
        """For each step, (B,)."""
        self._before: torch.Tensor | None = None

    def __call__(self, number: int, image: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """See `CachedSteps`."""
        output = blocks.others(*blocks.first(image))
        size = torch.linalg.vector_norm(output - image, dim=-1, dtype=torch.float32)
        before = size if self._before is None else self._before
        self.ratios.append((size / (before + 1e-8)).mean(dim=1))
        self._before = size
        self.computed_steps[:] = [steps + 1 for steps in self.computed_steps]
        return output
