"""Checks the ControlNet of a config: its files, whether it fits the transformer, and its sampling keys. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fluxexp.config.checkpoint_files import component_config, model_files
from fluxexp.config.component_checks import quantization_method
from fluxexp.config.controlnet_files import (
    CONTROLNET,
    controlnet_config,
    controlnet_tensors,
)
from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES
from fluxexp.config.hub_directories import controlnet_place
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import ControlNetConfig, FluxModelConfig, RunConfig, SamplingConfig
from fluxexp.config.stored_weights import stored_weights
from fluxexp.config.weight_headers import ComponentError, read_json
from fluxexp.errors import ConfigError, Problem

_PATH = "model.controlnet.path"
_OFF: Mapping[str, Any] = {
    "controlnet_scale": 1.0,
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "control_mode": None,
}
"""The values of the sampling keys that a model without a ControlNet must have."""


def controlnet_fits(config: RunConfig) -> Iterator[Problem]:
    """Check that a family with a ControlNet has a complete one, and that all keys about it have an effect."""
    family, model = FAMILIES[config.model.family], config.model
    given = model.controlnet if isinstance(model, FluxModelConfig) else None
    if not family.has_controlnet:
        yield from _without_controlnet(config, given)
        return
    assert isinstance(model, FluxModelConfig)
    if given is None:
        hint = "set model.controlnet.path to a directory or hub id (model=flux_controlnet has this key)"
        yield Problem("model.controlnet", f"must be set for model.family={family.name}", "null", hint)
        return
    yield from _range(config.sampling)
    if model.weights == "random" and given.layout is None:
        yield Problem("model.controlnet.layout", "must be set for random weights", "null", "use plain, union or xlabs")
        return
    if model.weights == "pretrained":
        found = list(_files(model, given))
        yield from found
        if found:
            return
    yield from _mode(model, config.sampling)


def _without_controlnet(config: RunConfig, given: ControlNetConfig | None) -> Iterator[Problem]:
    families = ", ".join(name for name in PIPELINE_FAMILIES if FAMILIES[name].has_controlnet)
    about = f"{config.model.name} has no ControlNet"
    if given is not None:
        hint = f"use null, or another family ({families})"
        yield Problem("model.controlnet", f"has no effect, because model.family={config.model.family}", hint=hint)
    for name, off in _OFF.items():
        value = getattr(config.sampling, name)
        if value != off:
            hint = f"use {'null' if off is None else off}, or a model of another family ({families})"
            yield Problem(f"sampling.{name}", f"has no effect, because {about}", value, hint)


def _range(sampling: SamplingConfig) -> Iterator[Problem]:
    if sampling.control_guidance_start >= sampling.control_guidance_end:
        what = f"is not below sampling.control_guidance_end={sampling.control_guidance_end:g}: no step is between them"
        hint = "use sampling.controlnet_scale=0 for images without the ControlNet"
        yield Problem("sampling.control_guidance_start", what, sampling.control_guidance_start, hint)


def _mode(model: FluxModelConfig, sampling: SamplingConfig) -> Iterator[Problem]:
    found = controlnet_config(model)
    if found is None:  # on a hub, and not downloaded yet
        return
    modes, mode = found.get("num_mode"), sampling.control_mode
    if modes is None and mode is not None:
        yield Problem("sampling.control_mode", "has no effect: this ControlNet has only one kind", mode, "use null")
    elif modes is not None and (mode is None or mode >= modes):
        what = f"must be one of the {modes} kinds of control images that this ControlNet knows"
        hint = f"use a number from 0 to {modes - 1}; the model's card says what they mean (often 0: canny, 2: depth)"
        yield Problem("sampling.control_mode", what, "null" if mode is None else mode, hint)


def _files(model: FluxModelConfig, controlnet: ControlNetConfig) -> Iterator[Problem]:
    place = controlnet_place(controlnet)
    yield from place.problems_of_place()
    if directory := place.find():
        yield from controlnet_problems(model, directory)


def controlnet_problems(model: FluxModelConfig, directory: Path) -> Iterator[Problem]:
    """Check the files of the ControlNet in `directory`, by their headers, and whether it fits the transformer."""
    assert model.controlnet is not None
    path = model.controlnet.path
    try:
        config = read_json(directory / "config.json")
        if config.get("_class_name", "FluxControlNetModel") != "FluxControlNetModel":
            reason = f"config.json is of a {config['_class_name']}, not of a ControlNet of FLUX.1"
            raise ComponentError(reason, "use a ControlNet in the layout of diffusers (FluxControlNetModel)")
        if method := quantization_method(config):
            reason = f"its weights are quantized (quant_method={method})"
            raise ComponentError(reason, "use weights in bfloat16, float16, float32 or FP8")
        stored_weights(CONTROLNET, config, controlnet_tensors(directory)[1])
    except ComponentError as error:
        yield Problem(_PATH, str(error), path, error.hint)
        return
    for reason in _misfits(config, _transformer_config(model)):
        yield Problem(_PATH, reason, path, "use a ControlNet for this transformer")


def _transformer_config(model: FluxModelConfig) -> Mapping[str, Any] | None:
    """None: it is on a hub, or another check reports that it is damaged."""
    directory = model_directory(model.source)
    try:
        return None if directory is None else component_config(directory, "transformer", model_files(model))
    except (ComponentError, ConfigError):
        return None


def _misfits(config: Mapping[str, Any], transformer: Mapping[str, Any] | None) -> Iterator[str]:
    """Why a ControlNet whose tensors fit its config does not fit the transformer."""
    channels = config.get("conditioning_embedding_channels")
    if channels is not None and (config.get("patch_size"), 4 * channels) != (2, config["in_channels"]):
        yield "reads pixels, but does not make one token of 16 x 16 pixels of them (patch_size must be 2)"
    if config["num_layers"] + config["num_single_layers"] == 0:
        yield "has no blocks"
    if transformer is None:
        return
    for name in ("in_channels", "joint_attention_dim", "pooled_projection_dim"):
        if config[name] != transformer.get(name):
            yield f"has {name}={config[name]}, but the transformer has {transformer.get(name)}"
    widths = [each["num_attention_heads"] * each["attention_head_dim"] for each in (config, transformer)]
    if widths[0] != widths[1]:
        yield f"is {widths[0]} wide, but the transformer is {widths[1]} wide"
