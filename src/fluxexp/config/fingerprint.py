"""The fingerprint of a config: a hash of the keys that change pixels. Run directories and task keys contain it.

Keys that only say how many images are made, how fast, on which ranks or where they go are left out: limit, images per
sample, batch size, parallelism, tracking, output.dir. So a run can be extended, moved and continued.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from fluxexp.config.migrations import without_new_defaults
from fluxexp.config.model_paths import model_directory
from fluxexp.config.optimization_kinds import chosen, is_settled
from fluxexp.config.schema import (
    DatasetConfig,
    FakeModelConfig,
    FluxModelConfig,
    FolderDatasetConfig,
    ModelConfig,
    OptimizationConfig,
    OutputConfig,
    PromptsDatasetConfig,
    RunConfig,
    SamplingConfig,
    ShapesDatasetConfig,
    TableDatasetConfig,
)
from fluxexp.records import content_hash

PIXELS_VERSION = 2
"""Increase it when a change of fluxexp itself changes the pixels of an unchanged config.

A different rounding of a lossless optimization does not count: rounding also differs between devices and batch sizes.
"""

_LOADED = (".json", ".safetensors", ".txt", ".model")
_READ_WHOLE = 1 << 24
"""Bytes. Larger files are not hashed as a whole."""
_READ_PART = 1 << 16


def fingerprint_payload(config: RunConfig) -> dict[str, Any]:
    """Return the part of `config` that changes pixels, as values that JSON can represent."""
    return {
        "pixels_version": PIXELS_VERSION,
        "model": model_payload(config.model),
        "scheduler": without_new_defaults("scheduler", asdict(config.scheduler)),
        "sampling": _sampling(config.sampling),
        "dataset": dataset_payload(config.dataset),
        "optimization": _optimization(config.optimization),
        "output": _output(config.output),
    }


def fingerprint(config: RunConfig) -> str:
    """Return the hash of `fingerprint_payload`, 16 hex digits."""
    return content_hash(fingerprint_payload(config))


def model_payload(model: ModelConfig) -> dict[str, Any]:
    """Return the part of a model's config that changes pixels."""
    if isinstance(model, FakeModelConfig):
        return {"family": model.family, "resolution": model.resolution}
    return {
        "family": model.family,
        "dtype": model.dtype,
        "resolution": model.resolution,
        "weights": _weights(model),
    }


def _weights(model: FluxModelConfig) -> Any:
    """The identity of the weights: for a directory a hash of its content, for a hub id its name and revision."""
    if model.weights == "random":
        return ["random", model.layout]
    directory = model_directory(model.path)
    if directory is None:
        return [model.path, model.revision]
    return directory_content(directory)


def directory_content(directory: Path) -> str:
    """Return a hash of a model's weights and settings, 16 hex digits. It does not depend on the directory's place."""
    return content_hash(
        [[file.relative_to(directory).as_posix(), file_content(file)] for file in _model_files(directory)]
    )


def _model_files(directory: Path) -> list[Path]:
    """List the files that are loaded. It follows links, because models can share components by links."""
    files: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(directory, followlinks=True):
        # Hidden folders hold files of download tools. Each folder is visited once, because links can form a cycle.
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        files += (path for name in names if (path := Path(parent, name)).suffix in _LOADED and path.is_file())
    return sorted(files)


def file_content(file: Path) -> str:
    """Return size and hash of a file.

    Of a large file, only the start (with the names and offsets of tensors) and the end are hashed.
    """
    stat = file.stat()
    return _digest(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(file: Path, size: int, _mtime_ns: int) -> str:
    """Cached by size and modification time, because a sweep asks for the same file at every point."""
    with file.open("rb") as stream:
        digest = hashlib.sha256(stream.read(_READ_WHOLE if size <= _READ_WHOLE else _READ_PART))
        if size > _READ_WHOLE:
            stream.seek(size - _READ_PART)
            digest.update(stream.read())
    return f"{size}-{digest.hexdigest()}"


def _optimization(optimization: OptimizationConfig) -> dict[str, Any]:
    """The optimizations that are on, without the exact ones. Those that are off do not change the hash."""
    if not is_settled(optimization):
        raise ValueError("optimization values `auto` must be replaced (`settled`) before a fingerprint is computed")
    return chosen(optimization, "lossless", "approximate")


def _sampling(sampling: SamplingConfig) -> dict[str, Any]:
    values = asdict(sampling)
    for name in ("batch_size", "images_per_sample"):
        del values[name]
    if sampling.height is not None or sampling.width is not None:
        del values["max_pixels"]
    return without_new_defaults("sampling", values)


def dataset_payload(dataset: DatasetConfig) -> dict[str, Any]:
    """Return the part of a dataset's config that changes its samples."""
    common = {"kind": dataset.kind, "placement": dataset.placement}
    match dataset:
        case ShapesDatasetConfig():
            return common | {"seed": dataset.seed, "height": dataset.height, "width": dataset.width}
        case FolderDatasetConfig():
            masks = dataset.masks and _absolute(dataset.masks)
            return common | _files(dataset) | {"masks": masks}
        case TableDatasetConfig():
            return common | _files(dataset)
        case PromptsDatasetConfig():
            return common | {"path": _absolute(dataset.path)}


def _files(dataset: FolderDatasetConfig | TableDatasetConfig) -> dict[str, Any]:
    masks = {
        "invert_mask": dataset.invert_mask,
        "mask_blur": dataset.mask_blur,
        "mask_padding": dataset.mask_padding,
    }
    return {
        "path": _absolute(dataset.path),
        "prompt": dataset.prompt,
        "alpha_mask": dataset.alpha_mask,
        "mask": dataset.mask,
    } | without_new_defaults("dataset", masks)


def _output(output: OutputConfig) -> dict[str, Any]:
    quality = {} if output.format == "png" else {"quality": output.quality}
    return {"format": output.format, "paste": output.paste} | quality


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())
