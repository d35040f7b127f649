"""Opens datasets with the library `datasets`, and finds their columns. Only this module imports the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxexp.config.build import unknown_name
from fluxexp.config.dataset_places import is_local_dataset
from fluxexp.config.schema import HubDatasetConfig
from fluxexp.data.paths import expanded
from fluxexp.errors import ConfigError, Problem

_LONGEST = 300


def load_rows(config: HubDatasetConfig) -> tuple[Any, list[Path]]:
    """The rows of the split, and the folders whose files they may name. Downloads a dataset of the hub.

    Raises:
        ConfigError: there is no such dataset, configuration or split, or it cannot be read.
    """
    import datasets
    from huggingface_hub import constants

    datasets.disable_progress_bars()
    is_local = is_local_dataset(config.path)
    place = expanded(config.path)
    options: dict[str, Any] = {"split": config.split}
    try:
        if is_local and place.is_file():
            options["data_files"] = {config.split: str(place)}
            rows = datasets.load_dataset("parquet", **options)
        else:
            revision = None if is_local else config.revision
            name = str(place) if is_local else config.path
            rows = datasets.load_dataset(name, config.name, revision=revision, **options)
    except Exception as error:  # of this library, pyarrow and networks, of many types
        raise _trouble(config, error) from None
    folder = place if place.is_dir() else place.parent
    own = [folder] if is_local else [Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]
    return rows, own


def _trouble(config: HubDatasetConfig, error: Exception) -> ConfigError:
    text = " ".join(str(error).split())[:_LONGEST]
    if "unknown split" in text.lower():
        return ConfigError(Problem("dataset.split", f"is not possible ({text})", config.split, "use one that exists"))
    if "config name" in text.lower() or "builderconfig" in text.lower():
        return ConfigError(Problem("dataset.name", f"is not possible ({text})", config.name, "use one that exists"))
    if isinstance(error.__cause__, Exception):
        text += f": {' '.join(str(error.__cause__).split())[:_LONGEST]}"
    hint = "set a hub id, or a folder or .parquet file that the library datasets can read"
    return ConfigError(Problem("dataset.path", f"cannot be read ({text or type(error).__name__})", config.path, hint))


def require_columns(config: HubDatasetConfig, rows: Any) -> tuple[Any, Any]:
    """The columns with keys and prompts, and all columns that samples need, with pictures as they are stored.

    Raises:
        ConfigError: a column is missing, or has another type.
    """
    import datasets

    columns, features = config.columns, rows.features
    pictures = _pictures(config)
    texts = {
        "columns.prompt": columns.prompt,
        "columns.key": columns.key,
        "columns.negative_prompt": columns.negative_prompt,
    }
    if config.prompt is not None and columns.prompt not in features:
        texts.pop("columns.prompt")
    problems = [
        Problem(f"dataset.{key}", "is not a column", name, unknown_name(name, features, "columns"))
        for key, name in {**texts, **pictures}.items()
        if name is not None and name not in features
    ]
    problems += [
        Problem(f"dataset.{key}", f"is a column of {kind}, not of pictures", name, _HINT)
        for key, name in pictures.items()
        if name in features and (kind := _wrong_kind(features[name])) is not None
    ]
    if problems:
        raise ConfigError(problems)
    used = [name for name in dict.fromkeys([*texts.values(), *pictures.values()]) if name is not None]
    for name in pictures.values():
        if isinstance(features[name], datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows.select_columns([name for name in texts.values() if name is not None]), rows.select_columns(used)


_HINT = "name a column of the feature type Image or of bytes; for paths and URLs, use dataset=table"


def _pictures(config: HubDatasetConfig) -> dict[str, str]:
    columns = config.columns
    named = {
        "columns.image": columns.image,
        "columns.mask": columns.mask if config.has_masks else None,
        "columns.truth": columns.truth,
        "controls": config.controls,
        "references": config.references,
    }
    return {key: name for key, name in named.items() if name is not None}


def _wrong_kind(feature: Any) -> str | None:
    """The type of a column that has no pictures; None for pictures."""
    import datasets

    if isinstance(feature, datasets.Image):
        return None
    if isinstance(feature, datasets.Value):
        return None if feature.dtype in ("binary", "large_binary") else str(feature.dtype)
    if isinstance(feature, dict) and "bytes" in feature:
        return None
    return type(feature).__name__
