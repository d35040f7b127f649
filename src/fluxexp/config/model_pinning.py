"""Pins a model on a hub to one commit, and checks its files, before anything is made. Never imports torch."""

from __future__ import annotations

from dataclasses import replace

from fluxexp.config.checkpoint_checks import model_directory_problems
from fluxexp.config.controlnet_checks import controlnet_problems
from fluxexp.config.controlnet_files import controlnet_directory, downloaded_controlnet, is_on_hub
from fluxexp.config.hub_models import available_commit, cached_snapshot, downloaded_snapshot, is_hub_model, is_offline
from fluxexp.config.schema import FluxModelConfig, ModelConfig
from fluxexp.errors import ConfigError


def pinned(model: ModelConfig, *, download: bool) -> ModelConfig:
    """Return `model` with the commits of its revision and its ControlNet's. What is not on a hub stays as it is.

    The local hub cache comes first, so that a run needs no network if the model is there.

    Args:
        model: of the config.
        download: whether to download what the local hub cache lacks.

    Raises:
        ConfigError: the model cannot be downloaded, or its files are damaged.
    """
    model = _with_pinned_controlnet(model, download=download)
    if not is_hub_model(model):
        return model
    snapshot = cached_snapshot(model.source, model.revision)
    problems = list(model_directory_problems(model, snapshot.directory)) if snapshot else []
    if download and (snapshot is None or problems):
        snapshot = downloaded_snapshot(model)
        problems = list(model_directory_problems(model, snapshot.directory))
    if problems and (download or is_offline()):
        raise ConfigError(problems)
    return replace(model, revision=snapshot.commit if snapshot else available_commit(model))


def _with_pinned_controlnet(model: ModelConfig, *, download: bool) -> ModelConfig:
    if not isinstance(model, FluxModelConfig) or model.controlnet is None or model.weights == "random":
        return model
    controlnet = model.controlnet
    if not is_on_hub(controlnet):
        return model
    directory = controlnet_directory(controlnet)
    problems = list(controlnet_problems(model, directory)) if directory else []
    if download and (directory is None or problems):
        directory = downloaded_controlnet(controlnet)
        problems = list(controlnet_problems(model, directory))
    if problems and (download or is_offline()):
        raise ConfigError(problems)
    if directory is None:
        return model
    return replace(model, controlnet=replace(controlnet, revision=directory.name))
