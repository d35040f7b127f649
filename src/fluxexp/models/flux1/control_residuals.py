"""Residuals of a ControlNet: what it adds to the image tokens after the transformer's blocks.

All residuals of a step are one tensor (residuals, B, image tokens, width): first those of the double blocks, then those
of the single blocks. A ControlNet usually has fewer blocks than the transformer, so each residual serves several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

StepResiduals = Callable[[], torch.Tensor | None]
"""Returns the residuals of a step, and computes them at its first call. None: they are all 0, and were not computed."""


def NO_RESIDUALS() -> None:  # noqa: N802 (a constant of type `StepResiduals`)
    """The residuals of a model without a ControlNet."""


def once(compute: StepResiduals) -> StepResiduals:
    """`compute`, called at most once."""
    found: list[torch.Tensor | None] = []

    def residuals() -> torch.Tensor | None:
        if not found:
            found.append(compute())
        return found[0]

    return residuals


def as_arguments(residuals: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The residuals as further arguments of a function of tensors."""
    return () if residuals is None else (residuals,)


@dataclass(frozen=True, slots=True)
class ResidualLayout:
    """Which residual belongs to which block of the transformer."""

    doubles: int
    """Number of residuals of double blocks."""
    singles: int
    """Number of residuals of single blocks."""
    repeats: bool
    """XLabs: the residuals of double blocks follow one another and repeat. Otherwise, neighbors share a residual."""

    @classmethod
    def of(cls, controlnet: Any) -> ResidualLayout:
        """The layout of diffusers' FluxControlNetModel, with the rules of its pipelines."""
        doubles, singles = len(controlnet.controlnet_blocks), len(controlnet.controlnet_single_blocks)
        return cls(doubles, singles, controlnet.input_hint_block is not None)

    def of_double(self, number: int, blocks: int) -> int | None:
        """Index of the residual after double block `number` of `blocks`; None: there is none."""
        if not self.doubles:
            return None
        return number % self.doubles if self.repeats else number // ceil(blocks / self.doubles)

    def of_single(self, number: int, blocks: int) -> int | None:
        """The same for a single block."""
        return self.doubles + number // ceil(blocks / self.singles) if self.singles else None

    def arguments(self, residuals: torch.Tensor | None) -> dict[str, Any]:
        """The arguments of diffusers' FluxTransformer2DModel for residuals of all blocks."""
        if residuals is None:
            return {}
        doubles, singles = residuals[: self.doubles].unbind(), residuals[self.doubles :].unbind()
        return {
            "controlnet_block_samples": doubles or None,
            "controlnet_single_block_samples": singles or None,
            "controlnet_blocks_repeat": self.repeats,
        }


def for_rows(residual: torch.Tensor, rows: int) -> torch.Tensor:
    """A residual (B, image tokens, width) for so many rows: those of a second pass get the residuals of the first."""
    return residual if rows == len(residual) else residual.repeat(rows // len(residual), 1, 1)
