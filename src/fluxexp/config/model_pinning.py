"""Pins what a model has on a hub to commits, and checks the files, before anything is made. Never imports torch."""

from __future__ import annotations

from dataclasses import replace

from fluxexp.config.checkpoint_checks import model_directory_problems
from fluxexp.config.controlnet_checks import controlnet_problems
from fluxexp.config.hub_directories import controlnet_place, image_encoder_place, redux_place
from fluxexp.config.hub_models import available_commit, cached_snapshot, downloaded_snapshot, is_hub_model, is_offline
from fluxexp.config.ip_adapter_checks import ip_adapter_problems
from fluxexp.config.redux_checks import redux_problems
from fluxexp.config.schema import FluxModelConfig, ModelConfig, RunConfig
from fluxexp.errors import ConfigError


def pinned(config: RunConfig, *, download: bool) -> RunConfig:
    """Return `config` with the commits of its model, ControlNet, Redux and image encoder.

    What is not on a hub stays as it is. The local hub cache comes first, so that a run may need no network.

    Args:
        config: of the run.
        download: whether to download what the local hub cache lacks.

    Raises:
        ConfigError: files cannot be downloaded, or are damaged.
    """
    model = _pinned_model(_with_pinned_controlnet(config.model, download=download), download=download)
    config = replace(config, model=model)
    if redux := redux_place(config.redux):
        commit = redux.pinned(lambda directory: redux_problems(config, directory), download=download)
        config = replace(config, redux=replace(config.redux, revision=commit))
    if encoder := image_encoder_place(config.ip_adapter):
        commit = encoder.pinned(lambda directory: ip_adapter_problems(config, directory), download=download)
        config = replace(config, ip_adapter=replace(config.ip_adapter, image_encoder_revision=commit))
    return config


def _pinned_model(model: ModelConfig, *, download: bool) -> ModelConfig:
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
    place = controlnet_place(model.controlnet)
    commit = place.pinned(lambda directory: controlnet_problems(model, directory), download=download)
    return replace(model, controlnet=replace(model.controlnet, revision=commit))
