"""Strategy 4 of 4: how a step gets its velocity from the denoiser.

`Passes` makes one pass, or a second one with the negative prompt (true CFG). Both get the residuals of a ControlNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fluxexp.models.flux1.control_residuals import NO_RESIDUALS, StepResiduals, once
from fluxexp.models.flux1.controlnet import ControlFunction
from fluxexp.models.flux1.denoiser import Denoiser, StepFunction
from fluxexp.models.flux1.flow import SecondPass
from fluxexp.models.flux1.ip_adapter import INPUT


class PreparedSteps(Protocol):
    """The steps of one batch."""

    @property
    def computed_steps(self) -> list[int]:
        """For each image, the number of evaluations so far that ran the whole transformer."""
        ...

    def __call__(self, number: int, tokens: torch.Tensor, /) -> torch.Tensor:
        """The velocity at step `number`, from the tokens that the transformer sees (B, image tokens, channels)."""
        ...


class InsideStep(Protocol):
    """Prepares the denoiser for one batch."""

    def prepare(
        self,
        denoiser: Denoiser,
        inputs: dict[str, Any],
        second: SecondPass | None,
        timesteps: torch.Tensor,
        num_skipped: int,
        control: ControlFunction | None = None,
    ) -> PreparedSteps:
        """The velocity as a function of step and tokens.

        Args:
            denoiser: of the model.
            inputs: the transformer's inputs that do not change from step to step.
            second: what the second pass needs in addition; None if there is none.
            timesteps: of the steps to run.
            num_skipped: number of earlier steps of the schedule that are not run.
            control: makes the residuals of the ControlNet, once per step; None: there is none.
        """
        ...


class Passes:
    """One evaluation of the transformer for each step, or two if the batch has negative prompts.

    diffusers calls the transformer twice. So does this class, as long as the denoiser promises the bits of the library.
    Otherwise one call has the rows of both passes: it reads the weights once, and fills the GPU better at small sizes.
    """

    def prepare(
        self,
        denoiser: Denoiser,
        inputs: dict[str, Any],
        second: SecondPass | None,
        timesteps: torch.Tensor,
        num_skipped: int,
        control: ControlFunction | None = None,
    ) -> PreparedSteps:
        """See `InsideStep`."""
        steps = self._prepare(denoiser, inputs, second, timesteps, num_skipped)
        return steps if control is None else _Controlled(steps, control)

    def _prepare(
        self,
        denoiser: Denoiser,
        inputs: dict[str, Any],
        second: SecondPass | None,
        timesteps: torch.Tensor,
        num_skipped: int,
    ) -> _Passes:
        if second is None:
            return _OnePass(denoiser, denoiser.prepare(inputs, timesteps, num_skipped))
        negative = inputs | {
            "encoder_hidden_states": second.prompt_embeds,
            "pooled_projections": second.pooled_embeds,
        }
        if second.pictures is not None:
            negative[INPUT] = second.pictures
        if not stacks_passes(denoiser, second):
            return _TwoCalls(denoiser, (inputs, negative), second.scales, timesteps, num_skipped)
        return _TwiceTheRows(denoiser, (inputs, negative), second.scales, timesteps, num_skipped)


def stacks_passes(denoiser: Denoiser, second: SecondPass | None) -> bool:
    """Whether one call has the rows of both passes: those of the prompts, then those of the negative prompts."""
    return second is not None and not denoiser.is_exact


class _Passes(Protocol):
    """The passes of each step of one batch, with the residuals of a ControlNet."""

    @property
    def computed_steps(self) -> list[int]: ...

    def __call__(
        self, number: int, tokens: torch.Tensor, residuals: StepResiduals = NO_RESIDUALS, /
    ) -> torch.Tensor: ...


class _Controlled:
    """Steps whose residuals are computed when a pass needs them, and then serve all passes of the step."""

    def __init__(self, passes: _Passes, control: ControlFunction) -> None:
        self._passes = passes
        self._control = control

    @property
    def computed_steps(self) -> list[int]:
        return self._passes.computed_steps

    def __call__(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        return self._passes(number, tokens, once(lambda: self._control(number, tokens)))


class _OnePass:
    def __init__(self, denoiser: Denoiser, step: StepFunction) -> None:
        self._step = step
        self.computed_steps = denoiser.computed_steps

    def __call__(self, number: int, tokens: torch.Tensor, residuals: StepResiduals = NO_RESIDUALS, /) -> torch.Tensor:
        return self._step(number, tokens, residuals)


class _TwoCalls:
    """Two calls per step. A step cache has a state of its own for each of them."""

    def __init__(
        self,
        denoiser: Denoiser,
        inputs: Sequence[dict[str, Any]],
        scales: torch.Tensor,
        timesteps: torch.Tensor,
        num_skipped: int,
    ) -> None:
        self._passes = [_OnePass(denoiser, denoiser.prepare(own, timesteps, num_skipped)) for own in inputs]
        self._scales = scales

    @property
    def computed_steps(self) -> list[int]:
        positive, negative = (each.computed_steps for each in self._passes)
        return [sum(both) for both in zip(positive, negative, strict=True)]

    def __call__(self, number: int, tokens: torch.Tensor, residuals: StepResiduals = NO_RESIDUALS, /) -> torch.Tensor:
        positive, negative = (each(number, tokens, residuals) for each in self._passes)
        return guided(positive, negative, self._scales)


class _TwiceTheRows:
    """One call per step: first the rows of the prompts, then those of the negative prompts.

    For step caches and the ranks of a replica, the rows of an image's two passes are two images.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        inputs: Sequence[dict[str, Any]],
        scales: torch.Tensor,
        timesteps: torch.Tensor,
        num_skipped: int,
    ) -> None:
        self._both = _OnePass(denoiser, denoiser.prepare(_stacked(*inputs), timesteps, num_skipped))
        self._scales = scales

    @property
    def computed_steps(self) -> list[int]:
        of_rows, batch = self._both.computed_steps, len(self._scales)
        return [sum(both) for both in zip(of_rows[:batch], of_rows[batch:], strict=True)]

    def __call__(self, number: int, tokens: torch.Tensor, residuals: StepResiduals = NO_RESIDUALS, /) -> torch.Tensor:
        positive, negative = self._both(number, torch.cat((tokens, tokens)), residuals).chunk(2)
        return guided(positive, negative, self._scales)


_OF_IMAGES = ("guidance", "pooled_projections", "encoder_hidden_states")
"""The inputs that have a row for each image. Position ids do not."""


def _stacked(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {
        name: torch.cat((first[name], second[name])) for name in _OF_IMAGES if first[name] is not None
    }
    if INPUT in first:
        rows[INPUT] = first[INPUT].followed_by(second[INPUT])
    return first | rows


def guided(positive: torch.Tensor, negative: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance: `negative + scale * (positive - negative)`, as in `FluxPipeline`.

    There the scale is a Python number. PyTorch multiplies values in half precision by such a number in float32 and
    rounds the product once. So does this function, with a scale for each image.

    Args:
        positive: velocity with the prompt (B, image tokens, channels).
        negative: velocity with the negative prompt, of the same shape.
        scales: float32 (B,).
    """
    scaled = (positive - negative).float() * scales[:, None, None]
    return negative + scaled.to(negative.dtype)
