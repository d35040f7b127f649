"""Prepares schedulers, once for each setting: preparing one waits for the device."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.models.schedulers import DynamicShift, first_sigma, flux1_shift, make_scheduler, set_schedule
from fluxexp.records import Point

_MAX_SCHEDULES = 256
"""Number of prepared schedules in memory. A sweep may have more settings: then all are dropped and made again."""


@dataclass(frozen=True, slots=True)
class PreparedSchedule:
    """A scheduler that is ready for its first step. Each batch takes a copy, because schedulers keep state."""

    scheduler: Any
    timesteps: torch.Tensor
    """Of the steps to run, on the device."""
    starts_from_noise: bool
    """Whether denoising starts from pure noise: at strength 1, or if its first noise level is 1."""


class Schedules:
    """Prepared schedules by point and image size. Points of a sweep may differ in scheduler and shift."""

    def __init__(self, base: Any, device: torch.device, shift: DynamicShift = flux1_shift) -> None:
        """Start empty.

        Args:
            base: config of the model's own scheduler.
            device: where timesteps are stored.
            shift: of the model line. It may depend on the number of steps.
        """
        self._shift = shift
        self._base = base
        self._device = device
        self._prepared: dict[Hashable, PreparedSchedule] = {}

    def get(self, point: Point, image_tokens: int) -> PreparedSchedule:
        """The schedule of `point` for an image with this many tokens, on which the timestep shift depends."""
        key = (point.scheduler, point.shift, point.steps, point.strength, image_tokens)
        if key not in self._prepared:
            scheduler = make_scheduler(point.scheduler, point.shift, self._base)
            timesteps = set_schedule(scheduler, point.steps, point.strength, image_tokens, self._device, self._shift)
            if len(self._prepared) >= _MAX_SCHEDULES:
                self._prepared.clear()
            # Some solvers (dpmsolver, deis) start slightly below noise level 1. At strength 1 that must not mix in
            # the image, which would show through the mask.
            starts_from_noise = point.strength >= 1 or first_sigma(scheduler) >= 1
            self._prepared[key] = PreparedSchedule(scheduler, timesteps, starts_from_noise)
        return self._prepared[key]
