"""Strategy 4 of 4: how a step gets its velocity from the denoiser.

A family with true CFG makes a second pass with the negative prompt, and one with a ControlNet computes residuals first.
Both fit the protocol: they prepare more than one function and combine them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from fluxexp.models.flux1.denoiser import Denoiser, StepFunction


class InsideStep(Protocol):
    """Prepares the denoiser for one batch."""

    def prepare(
        self, denoiser: Denoiser, inputs: dict[str, Any], timesteps: torch.Tensor, num_skipped: int
    ) -> StepFunction:
        """The velocity as a function of step and tokens.

        Args:
            denoiser: of the model.
            inputs: the transformer's inputs that do not change from step to step.
            timesteps: of the steps to run.
            num_skipped: number of earlier steps of the schedule that are not run.
        """
        ...


class OnePass:
    """One evaluation of the transformer for each step."""

    def prepare(
        self, denoiser: Denoiser, inputs: dict[str, Any], timesteps: torch.Tensor, num_skipped: int
    ) -> StepFunction:
        """The denoiser's own function."""
        return denoiser.prepare(inputs, timesteps, num_skipped)
