"""Models on the Hugging Face hub: their commits and snapshots in the local hub cache, and their download.

A branch moves, so rank 0 pins the model of a run to a commit (`model_pinning.py`). Never imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from fluxexp.config.checkpoint_files import model_files
from fluxexp.config.families import FAMILIES
from fluxexp.config.model_paths import EMBEDDED, model_directory
from fluxexp.config.schema import FluxModelConfig, ModelConfig
from fluxexp.errors import ConfigError, Problem

_INDEX = "model_index.json"
_WEIGHTS = ".safetensors"
LOADED_SUFFIXES = (".json", _WEIGHTS, ".txt", ".model")
"""Names of the files of a model that are loaded end with one of these."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit. The snapshot in the cache may be incomplete."""

    commit: str
    directory: Path


def is_hub_model(model: ModelConfig) -> TypeGuard[FluxModelConfig]:
    """Whether the weights of `model` are in a repository on a hub."""
    return (
        isinstance(model, FluxModelConfig)
        and model.weights == "pretrained"
        and not model.source.startswith(EMBEDDED)
        and model_directory(model.source) is None
    )


def cached_snapshot(repository: str, revision: str | None) -> Snapshot | None:
    """Find a revision (null: main) in the local hub cache. Uses no network; None if the revision is not there."""
    from huggingface_hub import try_to_load_from_cache  # only if there is a hub id

    try:
        index = try_to_load_from_cache(repository, _INDEX, revision=revision)
    except ValueError:  # the text cannot be a hub id
        return None
    if not isinstance(index, str):
        return None
    directory = Path(index).parent
    return Snapshot(directory.name, directory)


def is_offline() -> bool:
    """Whether the user forbids the network (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def downloaded_snapshot(model: FluxModelConfig) -> Snapshot:
    """Return the snapshot of a model on a hub. Downloads the files that are missing.

    Raises:
        ConfigError: it is not in the local hub cache, and cannot be downloaded; or a single file is damaged.
    """
    from huggingface_hub import snapshot_download

    in_files = model_files(model)
    patterns = [_INDEX]
    for name in FAMILIES[model.family].components:
        patterns += [f"{name}/*{suffix}" for suffix in LOADED_SUFFIXES if name not in in_files or suffix != _WEIGHTS]
    try:
        directory = snapshot_download(model.source, revision=model.revision, allow_patterns=patterns)
    except Exception as error:  # the hub's client and its HTTP library raise errors of many types
        raise ConfigError(_unavailable(model, error)) from error
    return Snapshot(Path(directory).name, Path(directory))


def available_commit(model: FluxModelConfig) -> str:
    """Return the commit of a model on a hub, and check that it may be downloaded. Downloads no weights.

    Raises:
        ConfigError: the hub does not give it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        metadata = get_hf_file_metadata(hf_hub_url(model.source, _INDEX, revision=model.revision))
    except Exception as error:  # as above
        raise ConfigError(_unavailable(model, error)) from error
    if metadata.commit_hash is None:
        raise ConfigError(_unavailable(model, ValueError("the hub named no commit")))
    return str(metadata.commit_hash)


def _unavailable(model: FluxModelConfig, error: Exception) -> Problem:
    key, repository = "model.path" if model.base is None else "model.base", model.source
    at = f" at revision {model.revision}" if model.revision else ""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return Problem(
        key,
        f"is not in the local hub cache{at}, and cannot be downloaded ({type(error).__name__}: {reason})",
        repository,
        f"accept the license at https://huggingface.co/{repository} if the model is gated, run `hf auth login`, and "
        f"try again;\n      or set {key} to a directory with the model in the layout of diffusers",
    )
