"""Loads FLUX pipelines of diffusers. Safetensors only, and no code from the model's directory."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxFillPipeline, FluxPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModel as FluxModelConfig
from fluxexp.config.schema import Optimization
from fluxexp.errors import ModelError
from fluxexp.models.flux import FluxModel
from fluxexp.models.flux_fill import FluxFillModel
from fluxexp.models.layouts import LAYOUTS
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.models.random_weights import random_pipeline
from fluxexp.models.text_cache import text_identity

_FAMILIES: dict[str, tuple[type[FluxModel], type[DiffusionPipeline]]] = {
    "flux": (FluxModel, FluxPipeline),
    "flux_fill": (FluxFillModel, FluxFillPipeline),
}


def load_flux(config: FluxModelConfig, optimization: Optimization, device: torch.device) -> FluxModel:
    """The pipeline of `config` on `device`, optimized.

    Raises:
        ModelError: the files are missing, damaged, of another family, or an optimization cannot be applied.
    """
    diffusers_logging.disable_progress_bar()  # eight ranks' bars would bury the run's own line
    transformers_logging.disable_progress_bar()
    model_class, pipeline_class = _FAMILIES[config.family]
    dtype = getattr(torch, config.dtype)
    if config.weights == "random":
        assert config.layout is not None
        pipeline: Any = random_pipeline(LAYOUTS[config.layout], device, dtype)
    else:
        pipeline = _load_pipeline(config, pipeline_class, dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    model = model_class(pipeline, device)
    if optimization.text_cache:
        model.text_identity = text_identity(config)
    apply_optimizations(model, optimization, config.resolution)
    return model


def _load_pipeline(config: FluxModelConfig, pipeline_class: Any, dtype: torch.dtype) -> Any:
    try:
        return pipeline_class.from_pretrained(
            str(model_directory(config.path) or config.path),
            revision=config.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"model.path={config.path!r} cannot be loaded as {pipeline_class.__name__}: {error}"
        ) from error
