"""Loads the ControlNet of a model."""

from __future__ import annotations

import torch

from fluxexp.config.controlnet_checks import controlnet_problems
from fluxexp.config.controlnet_files import CONTROLNET, controlnet_tensors
from fluxexp.config.hub_directories import controlnet_place
from fluxexp.config.schema import FluxModelConfig
from fluxexp.config.weight_headers import read_json
from fluxexp.models.loading.deprecations import own_deprecations_hidden
from fluxexp.models.loading.file_loader import load_stored_component


def load_controlnet(config: FluxModelConfig, dtype: torch.dtype) -> torch.nn.Module:
    """Load the ControlNet of `config` on the host. Weights in FP8 are dequantized.

    Raises:
        ConfigError: its files are missing, damaged, or do not fit the transformer.
        ComponentError: the same of its weights.
    """
    assert config.controlnet is not None
    # Rank 0 has checked its files, but this rank may be on another machine.
    directory = controlnet_place(config.controlnet).checked(lambda each: controlnet_problems(config, each))
    files, tensors = controlnet_tensors(directory)
    with own_deprecations_hidden():
        return load_stored_component(CONTROLNET, read_json(directory / "config.json"), tensors, files, "", dtype)
