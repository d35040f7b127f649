"""Pins a model on a hub to one commit, and checks its files, before anything is made. Never imports torch."""

from __future__ import annotations

from dataclasses import replace

from fluxexp.config.checkpoint_checks import model_directory_problems
from fluxexp.config.hub_models import available_commit, cached_snapshot, downloaded_snapshot, is_hub_model, is_offline
from fluxexp.config.schema import ModelConfig
from fluxexp.errors import ConfigError


def pinned(model: ModelConfig, *, download: bool) -> ModelConfig:
    """Return `model` with the commit of its revision. A model that is not on a hub stays as it is.

    The local hub cache comes first, so that a run needs no network if the model is there.

    Args:
        model: of the config.
        download: whether to download what the local hub cache lacks.

    Raises:
        ConfigError: the model cannot be downloaded, or its files are damaged.
    """
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
