"""Loads the model of a config, and keeps one loaded model for each process.

Imports diffusers only for a model that needs it, because the import takes seconds.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES
from fluxexp.config.schema import FakeModelConfig
from fluxexp.errors import ModelError
from fluxexp.models.base import ContextParallelModel, Model
from fluxexp.models.fake import FakeModel
from fluxexp.models.loading.model_lines import LINES

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
    line = LINES[FAMILIES[config.model.family].line]()
    key = line.key(config, takes_loras=takes_loras), device
    pixels = pixels or config.model.resolution**2
    if _loaded.get("key") != key or not line.has_room(_loaded["model"], pixels):
        _loaded.clear()  # first, because two models would not fit on a GPU
        gc.collect()  # the parts of a model refer to each other, so only the collector frees them
        if device.type == "cuda":
            torch.cuda.empty_cache()
        _loaded["model"] = line.load(config, device, pixels, takes_loras=takes_loras)
        _loaded["key"] = key
    line.start_run(_loaded["model"], config)
    model: ContextParallelModel = _loaded["model"]
    return model
