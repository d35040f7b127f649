"""Schedulers (solvers of the flow ODE) by name, all on FLUX's timestep schedule with the model's own shift.

FLUX shifts its schedule by the number of image tokens (Esser et al. 2024, "Scaling Rectified Flow Transformers",
eq. 23): sigma' = e^mu / (e^mu + 1/sigma - 1). A scheduler keeps state between steps, so each batch needs its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift


class FluxHeunScheduler(FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """Heun's method on a given schedule. The class of diffusers has no resolution-dependent shift."""

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, *, sigmas: np.ndarray | None = None, mu: float | None = None
    ) -> None:
        """Set timesteps from `sigmas` (float64, descending from 1, without the final 0), shifted by `mu`.

        Without `sigmas`, this is the method of the base class.
        """
        super().set_timesteps(num_inference_steps, device)
        if sigmas is None:
            return
        shift = self.config.shift if mu is None else float(np.exp(mu))
        shifted = torch.from_numpy(shift * sigmas / (1 + (shift - 1) * sigmas)).to(device, torch.float32)
        # The predictor and the corrector both evaluate each sigma except the first one.
        self.timesteps = torch.cat([shifted[:1], shifted[1:].repeat_interleave(2)]) * self.config.num_train_timesteps
        self.sigmas = torch.cat([shifted[:1], shifted[1:].repeat_interleave(2), shifted.new_zeros(1)])


def _flow_match(cls: type) -> Callable[..., Any]:
    def make(base: dict[str, Any], shift: float | None) -> Any:
        fixed = {} if shift is None else {"shift": shift, "use_dynamic_shifting": False}
        return cls.from_config(base, **fixed)  # type: ignore[attr-defined]

    return make


def _heun(base: dict[str, Any], shift: float | None) -> Any:
    dynamic = base.get("use_dynamic_shifting", False) and shift is None
    scheduler = FluxHeunScheduler(shift=shift or base.get("shift", 1.0))
    scheduler.register_to_config(**_shift_range(base), use_dynamic_shifting=dynamic)
    return scheduler


def _flow_sigmas(cls: type, **extra: Any) -> Callable[..., Any]:
    """Make a diffusion solver of diffusers in its flow-matching mode."""

    def make(base: dict[str, Any], shift: float | None) -> Any:
        dynamic = base.get("use_dynamic_shifting", False) and shift is None
        scheduler = cls(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift or base.get("shift", 1.0),
            use_dynamic_shifting=dynamic,
            **extra,
        )
        scheduler.register_to_config(**_shift_range(base))
        return scheduler

    return make


def _shift_range(base: dict[str, Any]) -> dict[str, Any]:
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return {name: base[name] for name in names if name in base}


_MAKERS: dict[str, Callable[..., Any]] = {
    "flow_match_euler": _flow_match(FlowMatchEulerDiscreteScheduler),
    "flow_match_heun": _heun,
    "flow_match_lcm": _flow_match(FlowMatchLCMScheduler),
    "dpmsolver_multistep": _flow_sigmas(DPMSolverMultistepScheduler),
    "dpmsolver_singlestep": _flow_sigmas(DPMSolverSinglestepScheduler, final_sigmas_type="zero"),
    "unipc": _flow_sigmas(UniPCMultistepScheduler),
    "deis": _flow_sigmas(DEISMultistepScheduler),
}


def make_scheduler(name: str, shift: float | None, base: Any) -> Any:
    """Make a new scheduler.

    Args:
        name: a key of `SchedulerConfig.name`.
        shift: fixed timestep shift; None keeps the model's own.
        base: config of the model's own scheduler.
    """
    return _MAKERS[name](dict(base), shift)


DynamicShift = Callable[[Mapping[str, Any], int, int], float]
"""Gives mu, the logarithm of the timestep shift, from a scheduler's config, the image tokens and the steps."""


def flux1_shift(config: Mapping[str, Any], image_tokens: int, steps: int) -> float:
    """The `DynamicShift` of FLUX.1: linear in the number of image tokens. It does not depend on the steps."""
    mu: float = calculate_shift(
        image_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    return mu


def set_schedule(
    scheduler: Any,
    steps: int,
    strength: float,
    image_tokens: int,
    device: torch.device,
    shift: DynamicShift = flux1_shift,
) -> torch.Tensor:
    """Prepare `scheduler` for one batch.

    Args:
        scheduler: changed in place.
        steps: of the whole schedule.
        strength: in (0, 1]. Below 1 the first steps are skipped, as in diffusers' image-to-image pipelines. At least
            one step is run.
        image_tokens: number of tokens of the image; the dynamic shift depends on it.
        device: where the timesteps are stored.
        shift: of the model line, used if the scheduler has a dynamic shift.

    Returns:
        timesteps, float32 or int64 of shape (evaluations,).
    """
    config = scheduler.config
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    options: dict[str, Any] = {}
    if "sigmas" in accepted and not config.get("use_flow_sigmas", False):
        options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    if config.get("use_dynamic_shifting", False):
        options["mu"] = shift(config, image_tokens, steps)
    scheduler.set_timesteps(steps, device=device, **options)
    skipped = int(max(steps - min(steps * strength, steps), 0)) * scheduler.order
    scheduler.set_begin_index(skipped)
    timesteps: torch.Tensor = scheduler.timesteps[skipped:]
    return timesteps


def first_sigma(scheduler: Any) -> float:
    """Noise level at which denoising starts, in [0, 1]; 1 is pure noise."""
    return float(scheduler.sigmas[scheduler.begin_index])


_ROUNDED_NOISE_LEVEL = (FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler)
"""Their `scale_noise` rounds the noise level to the dtype of the latents. `add_noise` gives the same bits without a
list of indices, for which the host would wait for the device."""


def add_noise(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Mix latents (B, C, H, W) with noise at the first noise level: sigma * noise + (1 - sigma) * clean."""
    if isinstance(scheduler, _ROUNDED_NOISE_LEVEL):
        level = scheduler.sigmas[scheduler.begin_index].to(clean.device, clean.dtype).view(1, 1, 1, 1)
        return level * noise + (1.0 - level) * clean  # type: ignore[no-any-return]
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(clean, timesteps[:1].repeat(len(clean)), noise)  # type: ignore[no-any-return]
    sigma = first_sigma(scheduler)
    return sigma * noise + (1.0 - sigma) * clean


def add_noise_again(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Mix latents with noise at the noise level of the next step; after the last step, return the latents themselves.

    It has the bits of `scale_noise` of diffusers, which would wait for the device.

    Args:
        scheduler: after a step.
        clean: latents of any shape.
        noise: of the same shape.
    """
    number = scheduler.step_index
    if number >= len(scheduler.timesteps):
        return clean
    sigma = scheduler.sigmas[number].to(clean.dtype)  # on the scheduler's device, which may be the CPU: it is a scalar
    return sigma * noise + (1.0 - sigma) * clean  # type: ignore[no-any-return]


def takes_generator(scheduler: Any) -> bool:
    """Whether a step of this scheduler draws noise, for which it accepts the generators of the tasks."""
    return isinstance(scheduler, FlowMatchLCMScheduler)
