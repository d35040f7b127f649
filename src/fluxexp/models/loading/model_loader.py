"""From a config to a model on a device. Imports diffusers only for a model that needs it: that takes seconds."""

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
    """See `load_divisible`."""
    return load_context_parallel_model(config, device, rank, pixels)


def load_context_parallel_model(
    config: RunConfig, device: torch.device, rank: int, pixels: int | None = None
) -> ContextParallelModel:
    """The model of `config`: the one this process has loaded if it fits, else loaded in its place.

    Args:
        pixels: of the largest image that is to be made; by default of one of the model's own size.

    Raises:
        ModelError: the files are missing, damaged, of another family, or an optimization cannot be applied.
    """
    if isinstance(config.model, FakeModelConfig):
        if rank == config.model.broken_rank:
            raise ModelError(f"model.broken_rank={rank}: this fake model cannot be loaded here")
        return FakeModel(config.model, device, rank)
    with large_imports("fluxexp.models.loading.pipeline_loader"):
        from fluxexp.models.loading.pipeline_loader import load_flux
    from fluxexp.models.optimizations import change_step_cache

    optimization = replace(config.optimization, step_cache=None)  # which one, can change on a loaded model
    key = (config.model, optimization, device)
    pixels = pixels or config.model.resolution**2
    if _loaded.get("key") != key or not has_room(_loaded["model"], pixels):
        _loaded.clear()  # before loading, so that the old model's memory is free: two would not fit on a GPU
        gc.collect()  # its parts know each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
        _loaded["model"] = load_flux(config.model, optimization, device, pixels)
        _loaded["key"] = key
    change_step_cache(_loaded["model"], config.optimization)
    model: ContextParallelModel = _loaded["model"]
    return model


def has_room(model: Flux1Model, pixels: int) -> bool:
    """Whether a loaded model's weights lie so that images of so many pixels can be made.

    Raises:
        ModelError: however they lay, there would be no room.
    """
    if model.room is None or model.placement is None:
        return True
    return model.placement.work.holds(model.room.work(pixels)) or model.placement.lies_as(model.room.placement(pixels))
