"""Pins a dataset on the Hugging Face hub to one commit, as `config/model_pinning.py` does for models."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fluxexp.config.dataset_places import is_local_dataset
from fluxexp.config.schema import DatasetConfig, HubDatasetConfig
from fluxexp.errors import ConfigError, Problem

_COMMIT = re.compile(r"[0-9a-f]{40}")


def require_datasets(path: str) -> None:
    """Raise a ConfigError if the library `datasets` is not installed."""
    if find_spec("datasets") is None:
        what = "needs the library datasets, which is not installed"
        raise ConfigError(Problem("dataset.path", what, path, "pip install 'fluxexp[hub]'"))


def pinned_dataset(dataset: DatasetConfig) -> DatasetConfig:
    """Return `dataset` with the commit of its revision. What is not on a hub stays as it is.

    The local hub cache comes first, so that a run needs no network if the dataset is there.

    Raises:
        ConfigError: the library is missing, or the hub does not have the dataset or cannot be asked.
    """
    if not isinstance(dataset, HubDatasetConfig) or not dataset.path:
        return dataset
    require_datasets(dataset.path)
    if is_local_dataset(dataset.path):
        if dataset.revision is not None:
            what = "has no effect, because dataset.path is on this machine"
            raise ConfigError(Problem("dataset.revision", what, dataset.revision, "use null"))
        return dataset
    if dataset.revision is not None and _COMMIT.fullmatch(dataset.revision):
        return dataset
    return replace(dataset, revision=_cached_commit(dataset) or _hub_commit(dataset))


def _cached_commit(dataset: HubDatasetConfig) -> str | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"datasets--{dataset.path.replace('/', '--')}")
    try:
        commit = (folder / "refs" / (dataset.revision or "main")).read_text().strip()
    except (OSError, ValueError):
        return None
    return commit if _COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir() else None


def _hub_commit(dataset: HubDatasetConfig) -> str:
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(dataset.path, revision=dataset.revision, timeout=30).sha
    except Exception as error:  # of httpx and huggingface_hub, of many types
        reason = " ".join(str(error).split())[:200]
        hint = "check the id, HF_TOKEN for a gated dataset, and the network; or set a local folder or .parquet file"
        raise ConfigError(
            Problem("dataset.path", f"is not available on the hub ({reason})", dataset.path, hint)
        ) from None
    if commit is None:
        raise ConfigError(Problem("dataset.path", "has no commit on the hub", dataset.path, "set dataset.revision"))
    return str(commit)
