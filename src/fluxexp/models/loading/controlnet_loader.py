"""Loads the ControlNet of a model."""

from __future__ import annotations

from pathlib import Path

import torch

from fluxexp.config.controlnet_checks import controlnet_problems
from fluxexp.config.controlnet_files import CONTROLNET, controlnet_directory, controlnet_tensors, downloaded_controlnet
from fluxexp.config.schema import FluxModelConfig
from fluxexp.config.weight_headers import read_json
from fluxexp.errors import ConfigError
from fluxexp.models.loading.deprecations import own_deprecations_hidden
from fluxexp.models.loading.file_loader import load_stored_component


def load_controlnet(config: FluxModelConfig, dtype: torch.dtype) -> torch.nn.Module:
    """Load the ControlNet of `config` on the host. Weights in FP8 are dequantized.

    Raises:
        ConfigError: its files are missing, damaged, or do not fit the transformer.
        ComponentError: the same of its weights.
    """
    directory = _checked_directory(config)
    files, tensors = controlnet_tensors(directory)
    with own_deprecations_hidden():
        return load_stored_component(CONTROLNET, read_json(directory / "config.json"), tensors, files, "", dtype)


def _checked_directory(config: FluxModelConfig) -> Path:
    """The directory on this machine. Rank 0 has checked its files, but this rank may be on another machine."""
    assert config.controlnet is not None
    directory = controlnet_directory(config.controlnet)
    if directory is None or (problems := list(controlnet_problems(config, directory))):
        directory = downloaded_controlnet(config.controlnet)
        problems = list(controlnet_problems(config, directory))
    if problems:
        raise ConfigError(problems)
    return directory
