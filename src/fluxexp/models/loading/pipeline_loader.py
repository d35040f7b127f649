"""Loads FLUX pipelines of diffusers. Safetensors only, and no code from the model's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from fluxexp.config.checkpoint_checks import model_directory_problems
from fluxexp.config.checkpoint_files import model_files
from fluxexp.config.component_checks import WEIGHT_COMPONENTS
from fluxexp.config.controlnet_files import layout_config
from fluxexp.config.families import FAMILIES
from fluxexp.config.hub_models import cached_snapshot, downloaded_snapshot
from fluxexp.config.lora_checks import widened_channels
from fluxexp.config.model_digest import require_digest
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.model_paths import model_directory
from fluxexp.config.picture_schema import RANDOM, IpAdapterConfig, ReduxConfig
from fluxexp.config.schema import FluxModelConfig, OptimizationConfig
from fluxexp.config.weight_headers import ComponentError
from fluxexp.errors import ConfigError, ModelError
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.offloading import memory_budget, weight_bytes
from fluxexp.models.kernels.fp8_linear import has_fp8
from fluxexp.models.loading.component_loader import check_tokenizers, load_component
from fluxexp.models.loading.controlnet_loader import load_controlnet
from fluxexp.models.loading.picture_encoders import (
    add_ip_adapter,
    add_random_ip_adapter,
    draw_redux,
    load_redux,
    redux_without_weights,
)
from fluxexp.models.loading.random_weights import draw_weights, pipeline_without_weights
from fluxexp.models.loading.widening import widen_input
from fluxexp.models.offload.offload_plan import GIB
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.models.text.text_cache import text_identity
from fluxexp.parallel.topology import free_memory_bytes


def load_flux(
    config: FluxModelConfig,
    optimization: OptimizationConfig,
    device: torch.device,
    pixels: int | None = None,
    *,
    takes_loras: bool = False,
    mixes_loras: bool = False,
    redux: ReduxConfig | None = None,
    ip_adapter: IpAdapterConfig | None = None,
) -> Flux1Model:
    """Load the pipeline of `config` on `device` and optimize it.

    With `optimization.offload`, weights that do not fit stay on the host.

    Args:
        config: of the model.
        optimization: what to apply.
        device: where the model runs.
        pixels: of the largest image to leave room for; None for the model's own size.
        takes_loras: whether LoRAs will be merged into it.
        mixes_loras: see `lora.mixing`.
        redux: the config group; None without Redux, or with random weights.
        ip_adapter: the config group; None without an IP-Adapter.

    Raises:
        ModelError: files are missing, damaged or of another family, an optimization cannot be applied, or the model
            does not fit.
    """
    diffusers_logging.disable_progress_bar()  # the progress bars of all ranks would hide the run's own line
    transformers_logging.disable_progress_bar()
    # A LoRA is added to weights that are not quantized.
    keeps_fp8 = optimization.fp8_linears is True and has_fp8(device) and not takes_loras
    pipeline = _make_pipeline(config, keeps_fp8=keeps_fp8)
    family = FAMILIES[config.family]
    prior = _make_prior(config, pipeline, redux) if family.has_redux else None
    has_ip_adapter = ip_adapter is not None and _add_ip_adapter(config, pipeline, ip_adapter)
    # `components` has the image encoder of an IP-Adapter, but not those of Redux.
    of_redux = [] if prior is None else [prior.image_encoder, prior.image_embedder]
    encoders = [*of_redux, pipeline.image_encoder] if has_ip_adapter else of_redux
    free_bytes = free_memory_bytes(device)
    budget, plan, home = None, None, device
    if free_bytes is not None and optimization.offload is not None:
        budget = memory_budget(pipeline, optimization, free_bytes, family, encoders)
        plan = budget.plan(pixels or config.resolution**2)
        whole_bytes = weight_bytes([*pipeline.components.values(), *of_redux])
        if plan.policy != "resident" or whole_bytes + plan.work.peak > free_bytes:
            home = torch.device("cpu")  # until optimizations have changed the weights
    try:
        _bring_weights(config, pipeline, prior, device, home)
        pipeline.set_progress_bar_config(disable=True)
        model = Flux1Model(pipeline, device, family, prior)
        model.memory_budget, model.offload_plan = budget, plan
        model.loras.keeps_quantized, model.mixes_loras = takes_loras, mixes_loras
        model.loras.control_channels = widened_channels(config)
        if optimization.text_cache:
            model.text_identity = text_identity(config)
        apply_optimizations(model, optimization, config.resolution)
    except torch.OutOfMemoryError as error:
        assert free_bytes is not None
        raise ModelError(
            f"the model does not fit into GPU memory, of which {free_bytes / GIB:.1f} GiB were free: "
            f"use optimization.offload=auto instead of {optimization.offload or 'null'}, or free GPU memory"
        ) from error
    return model


def _bring_weights(
    config: FluxModelConfig, pipeline: Any, prior: Any, device: torch.device, home: torch.device
) -> None:
    """Move the loaded weights to `home`, or draw random ones on `device` and keep them on `home`."""
    if config.weights == "random":
        draw_weights(pipeline, device, home)
        if prior is not None:
            draw_redux(prior, device, home)
        return
    pipeline.to(home)
    if prior is not None:
        prior.to(home)


def _make_pipeline(config: FluxModelConfig, *, keeps_fp8: bool) -> Any:
    """The pipeline of the model's family on the host; with random weights, its weights are not made yet.

    Args:
        config: of the model.
        keeps_fp8: whether layers of the transformer that are stored in FP8 stay as they are.
    """
    family = FAMILIES[config.family]
    dtype = getattr(torch, config.dtype)
    if config.weights == "random":
        assert config.layout is not None
        layout, controlnet = LAYOUTS[config.layout], None
        if config.controlnet is not None and config.controlnet.layout is not None:
            controlnet = layout_config(config.controlnet.layout, dict(layout.transformer))
        return pipeline_without_weights(layout, dtype, family, controlnet)
    return _load_pipeline(config, getattr(diffusers, str(family.pipeline)), dtype, keeps_fp8=keeps_fp8)


def _make_prior(config: FluxModelConfig, pipeline: Any, redux: ReduxConfig | None) -> Any:
    """The `FluxPriorReduxPipeline` on the host; with random weights, its weights are not made yet."""
    if config.weights == "random":
        assert config.layout is not None
        return redux_without_weights(LAYOUTS[config.layout], pipeline.transformer.dtype)
    assert redux is not None
    return load_redux(redux, pipeline.transformer.config.joint_attention_dim, pipeline.transformer.dtype)


def _add_ip_adapter(config: FluxModelConfig, pipeline: Any, adapter: IpAdapterConfig) -> bool:
    """Return whether there is one."""
    if adapter.path == RANDOM:
        assert config.layout is not None
        add_random_ip_adapter(pipeline, LAYOUTS[config.layout])
    elif adapter.path is not None:
        add_ip_adapter(pipeline, adapter)
    return adapter.path is not None


def _load_pipeline(config: FluxModelConfig, pipeline_class: Any, dtype: torch.dtype, *, keeps_fp8: bool) -> Any:
    what = f"model.path={config.path!r} cannot be loaded as {pipeline_class.__name__}"
    try:
        directory = _checked_directory(config)
        require_digest(config, directory)
        files = model_files(config)
        weights = {
            name: load_component(directory, name, dtype, config.variant, files, keeps_fp8=keeps_fp8)
            for name in FAMILIES[config.family].components
            if name in WEIGHT_COMPONENTS
        }
        widen_input(weights["transformer"], config.family)
        if config.controlnet is not None:
            weights["controlnet"] = load_controlnet(config, dtype)
        pipeline = pipeline_class.from_pretrained(
            str(directory), dtype=dtype, use_safetensors=True, trust_remote_code=False, **weights
        )
        check_tokenizers(pipeline)
    except ComponentError as error:
        raise ModelError(f"{what}: {error}: {error.hint}") from error
    except ConfigError as error:
        raise ModelError(f"{what}:\n{error}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{what}: {error}") from error
    return pipeline


def _checked_directory(config: FluxModelConfig) -> Path:
    """The directory of the checkpoint on this machine, downloaded from a hub if necessary.

    Rank 0 has checked its files. This rank may be on another machine, with other files at the same path.

    Raises:
        ConfigError: the files are missing, damaged or of another family.
    """
    directory = model_directory(config.source)
    if directory is None:
        snapshot = cached_snapshot(config.source, config.revision)
        if snapshot is not None and not any(model_directory_problems(config, snapshot.directory)):
            return snapshot.directory
        directory = downloaded_snapshot(config).directory
    if problems := list(model_directory_problems(config, directory)):
        raise ConfigError(problems)
    return directory
