"""Strategy 3 of 4: what happens to the latents after each step of the scheduler.

A family that preserves the unmasked region (inpainting) can blend it back here: `begin` returns the clean latents, the
noise and the mask, and `apply` mixes them in at the next noise level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fluxexp.models.flux1.latents import BatchNoise


class AfterStep(Protocol):
    """Changes latents between steps."""

    def begin(self, conditionings: Sequence[Any], noise: BatchNoise) -> Any:
        """What `apply` needs: a value that can be pickled, because it is sent to all ranks of a replica."""
        ...

    def apply(self, latents: torch.Tensor, number: int, scheduler: Any, begun: Any) -> torch.Tensor:
        """Latents for the next step.

        Args:
            latents: packed, (B, image tokens, 4 * latent channels).
            number: of the step that has just ended, 0 for the first one.
            scheduler: of this batch, after that step.
            begun: the result of `begin`.
        """
        ...


class KeepLatents:
    """Latents stay as the scheduler gave them."""

    def begin(self, conditionings: Sequence[Any], noise: BatchNoise) -> None:
        """Nothing is needed."""

    def apply(self, latents: torch.Tensor, number: int, scheduler: Any, begun: None) -> torch.Tensor:
        """The same latents."""
        return latents
