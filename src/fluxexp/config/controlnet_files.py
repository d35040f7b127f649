"""Reads the config and the weights of a ControlNet in the layout of diffusers. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxexp.config.component_checks import WEIGHT_COMPONENTS
from fluxexp.config.generation_schema import FluxModelConfig
from fluxexp.config.hub_directories import controlnet_place
from fluxexp.config.weight_headers import file_tensors, read_json, weight_files

CONTROLNET = "controlnet"
"""The key of `WEIGHT_COMPONENTS`."""
_CONFIG = "config.json"
_KINDS: dict[str, dict[str, Any]] = {
    "plain": {"num_layers": 5, "num_single_layers": 10},
    "union": {"num_layers": 5, "num_single_layers": 10, "num_mode": 10},
    "xlabs": {"num_layers": 2, "num_single_layers": 0, "patch_size": 2, "conditioning_embedding_channels": 16},
}
"""By `model.controlnet.layout`: what differs from the transformer's config."""


def layout_config(layout: str, transformer: dict[str, Any]) -> dict[str, Any]:
    """Config of a ControlNet of random weights, as wide as a transformer with the config `transformer`."""
    config = {name: value for name, value in transformer.items() if name != "out_channels"} | _KINDS[layout]
    for name in ("num_layers", "num_single_layers"):  # those of a small transformer are fewer
        config[name] = min(config[name], transformer[name])
    return config


def controlnet_files(directory: Path) -> list[Path]:
    """Config and weights of a ControlNet, with the index of its shards.

    Raises:
        ComponentError: the weights are missing.
    """
    weights = weight_files(directory, WEIGHT_COMPONENTS[CONTROLNET].stem, None)
    index = sorted(directory.glob("*.safetensors.index.json")) if len(weights) > 1 else []
    return [directory / _CONFIG, *index, *weights]


def controlnet_tensors(directory: Path) -> tuple[list[Path], dict[str, Any]]:
    """The files with the weights of a ControlNet, and all their tensors by name.

    Raises:
        ComponentError: files are missing or damaged.
    """
    files = weight_files(directory, WEIGHT_COMPONENTS[CONTROLNET].stem, None)
    return files, {name: tensor for file in files for name, tensor in file_tensors(file).items()}


def controlnet_config(model: FluxModelConfig) -> dict[str, Any] | None:
    """The config of the ControlNet of `model` as far as it is known: None for one that is not on this machine yet.

    Raises:
        ComponentError: its config.json is missing or damaged.
    """
    controlnet = model.controlnet
    if controlnet is None:
        return None
    if model.weights == "random":
        return dict(_KINDS[controlnet.layout]) if controlnet.layout else None
    directory = controlnet_place(controlnet).find()
    return None if directory is None else read_json(directory / _CONFIG)
