"""Loads the model of a config, and keeps one loaded model for each process.

Imports diffusers only for a model that needs it, because the import takes seconds.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fluxexp.config import RunConfig
from fluxexp.config.schema import FakeModelConfig
from fluxexp.errors import ModelError
from fluxexp.imports import large_imports
from fluxexp.models.base import ContextParallelModel, Model
from fluxexp.models.fake import FakeModel

if TYPE_CHECKING:
    from fluxexp.models.flux1.flux1_model import Flux1Model

_loaded: dict[str, Any] = {}


def load_model(config: RunConfig, device: torch.device, rank: int, pixels: int | None = None) -> Model:
    """See `load_context_parallel_model`."""
    return load_context_parallel_model(config, device, rank, pixels)


def load_context_parallel_model(
    config: RunConfig, device: torch.device, rank: int, pixels: int | None = None, *, takes_loras: bool = False
) -> ContextParallelModel:
    """Return the model of `config`. A model that this process has loaded is used again if it fits, else replaced.

    Args:
        config: of the run.
        device: where the model runs.
        rank: of this process; the fake model's speed depends on it.
        pixels: of the largest image to make; None for the model's own size.
        takes_loras: whether LoRAs will be merged into the model, so that it must keep weights that it quantizes.

    Raises:
        ModelError: the files are missing, damaged, of another family, or an optimization cannot be applied.
    """
    if isinstance(config.model, FakeModelConfig):
        if rank == config.model.broken_rank:
            raise ModelError(f"model.broken_rank={rank}: the fake model is set to fail on this rank")
        return FakeModel(config.model, device, rank)
    with large_imports("fluxexp.models.loading.pipeline_loader"):
        from fluxexp.models.loading.pipeline_loader import load_flux
    from fluxexp.models.optimizations import change_step_cache

    optimization = replace(config.optimization, step_cache=None)  # a loaded model can change its step cache
    keeps_original = takes_loras and bool(optimization.fp8_linears)
    pictures = (config.redux.path, config.ip_adapter.weights)
    key = (config.model, optimization, device, keeps_original, config.lora.mixing, pictures)
    pixels = pixels or config.model.resolution**2
    if _loaded.get("key") != key or not has_room(_loaded["model"], pixels):
        _loaded.clear()  # first, because two models would not fit on a GPU
        gc.collect()  # the parts of a model refer to each other, so only the collector frees them
        if device.type == "cuda":
            torch.cuda.empty_cache()
        _loaded["model"] = load_flux(
            config.model,
            optimization,
            device,
            pixels,
            takes_loras=takes_loras,
            mixes_loras=config.lora.mixing,
            redux_path=config.redux.path,
            ip_adapter=config.ip_adapter.weights,
        )
        _loaded["key"] = key
    _loaded["model"].loras.restore()  # of an earlier run
    change_step_cache(_loaded["model"], config.optimization)
    model: ContextParallelModel = _loaded["model"]
    return model


def has_room(model: Flux1Model, pixels: int) -> bool:
    """Whether a loaded model can make images with this many pixels without moving its weights.

    Raises:
        ModelError: no offload plan fits such images.
    """
    if model.memory_budget is None or model.offload_plan is None:
        return True
    plan, budget = model.offload_plan, model.memory_budget
    return plan.work.covers(budget.work(pixels)) or plan.places_weights_like(budget.plan(pixels))
