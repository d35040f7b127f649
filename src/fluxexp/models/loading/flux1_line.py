"""The FLUX.1 models for the model loader: what a loaded pipeline depends on, and how another run can use it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch

from fluxexp.config import RunConfig
from fluxexp.config.schema import FluxModelConfig
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.loading.pipeline_loader import load_flux
from fluxexp.models.optimizations import change_step_cache


class Flux1Line:
    """See `ModelLine`."""

    def key(self, config: RunConfig, *, takes_loras: bool) -> Hashable:
        """See `ModelLine`. A loaded model can change its step cache and its LoRAs."""
        optimization = replace(config.optimization, step_cache=None)
        keeps_original = takes_loras and bool(optimization.fp8_linears)
        pictures = config.redux.weights, config.ip_adapter.weights
        return config.model, optimization, keeps_original, config.lora.mixing, pictures

    def load(self, config: RunConfig, device: torch.device, pixels: int, *, takes_loras: bool) -> Flux1Model:
        """See `ModelLine`."""
        assert isinstance(config.model, FluxModelConfig)
        return load_flux(
            config.model,
            replace(config.optimization, step_cache=None),
            device,
            pixels,
            takes_loras=takes_loras,
            mixes_loras=config.lora.mixing,
            redux=config.redux,
            ip_adapter=config.ip_adapter,
        )

    def has_room(self, model: Any, pixels: int) -> bool:
        """See `ModelLine`."""
        if model.memory_budget is None or model.offload_plan is None:
            return True
        plan, budget = model.offload_plan, model.memory_budget
        return bool(plan.work.covers(budget.work(pixels)) or plan.places_weights_like(budget.plan(pixels)))

    def start_run(self, model: Any, config: RunConfig) -> None:
        """See `ModelLine`."""
        model.loras.restore()
        change_step_cache(model, config.optimization)
