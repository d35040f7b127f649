"""The fingerprint of a config: a hash of the keys that change pixels. Run directories and task keys contain it.

Keys that only say how many images are made, how fast, on which ranks or where they go are left out: limit, images per
sample, batch size, parallelism, tracking, output.dir. So a run can be extended, moved and continued.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxexp.config.checkpoint_files import model_files
from fluxexp.config.controlnet_files import controlnet_files
from fluxexp.config.dataset_places import folder_of, hub_place
from fluxexp.config.file_hashes import LARGE_BYTES, file_content, file_contents, unread_bytes
from fluxexp.config.hub_directories import HubDirectory, controlnet_place, image_encoder_place, redux_place
from fluxexp.config.hub_models import LOADED_SUFFIXES, cached_snapshot
from fluxexp.config.migrations import without_new_defaults
from fluxexp.config.model_paths import lora_file, model_directory
from fluxexp.config.optimization_kinds import chosen, is_settled
from fluxexp.config.picture_schema import RANDOM
from fluxexp.config.schema import (
    DatasetConfig,
    FakeModelConfig,
    FluxModelConfig,
    FolderDatasetConfig,
    HubDatasetConfig,
    IpAdapterConfig,
    LoraConfig,
    ModelConfig,
    OptimizationConfig,
    OutputConfig,
    PromptsDatasetConfig,
    ReduxConfig,
    RunConfig,
    SamplingConfig,
    ShapesDatasetConfig,
    TableDatasetConfig,
    WebDatasetConfig,
)
from fluxexp.errors import ConfigError, Problem
from fluxexp.records import content_hash

PIXELS_VERSION = 3
"""Increase it when a change of fluxexp itself changes the pixels of an unchanged config.

A different rounding of a lossless optimization does not count: rounding also differs between devices and batch sizes.
"""


def fingerprint_payload(config: RunConfig) -> dict[str, Any]:
    """Return the part of `config` that changes pixels, as values that JSON can represent."""
    return (
        {
            "pixels_version": PIXELS_VERSION,
            "model": model_payload(config.model),
            "scheduler": without_new_defaults("scheduler", asdict(config.scheduler)),
            "sampling": _sampling(config.sampling),
            "dataset": dataset_payload(config.dataset),
            "optimization": _optimization(config.optimization),
            "output": _output(config.output),
        }
        | _lora(config.lora)
        | _redux(config.redux)
        | _ip_adapter(config.ip_adapter)
    )


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
    } | _controlnet(model)


def _weights(model: FluxModelConfig) -> Any:
    """The identity of the weights: of a directory a hash of its content, of a hub id its name and commit."""
    if model.weights == "random":
        return ["random", model.layout]
    variant = [] if model.variant is None else [model.variant]
    directory, files = model_directory(model.source), model_files(model)
    in_files = [[name, file_content(files[name].file)] for name in sorted(files)]
    if directory is None:
        snapshot = cached_snapshot(model.source, model.revision)
        return [model.source, snapshot.commit if snapshot else model.revision, *variant, *in_files]
    content = _content(directory, loaded_files(directory, files))
    return [content, *variant, *in_files] if variant or in_files else content


def _controlnet(model: FluxModelConfig) -> dict[str, Any]:
    """The identity of the weights of the ControlNet. Nothing without one: older runs have none."""
    controlnet = model.controlnet
    if controlnet is None:
        return {}
    if model.weights == "random":
        return {"controlnet": ["random", controlnet.layout]}
    place = controlnet_place(controlnet)
    if place.is_on_hub:
        return {"controlnet": [place.path, place.commit]}
    return {"controlnet": _content(place.local, controlnet_files(place.local))}


def directory_content(directory: Path) -> str:
    """Return a hash of a model's weights and settings, 16 hex digits. It does not depend on the directory's place.

    All files are read, large ones once per machine (`file_hashes.py`).
    """
    return _content(directory, _model_files(directory))


def unread_model_bytes(model: ModelConfig) -> int:
    """The bytes of weights that `fingerprint` will read from disk, because their hashes are not known yet."""
    if not isinstance(model, FluxModelConfig) or model.weights == "random":
        return 0
    directory, files = model_directory(model.source), model_files(model)
    in_directory = loaded_files(directory, files) if directory else []
    of_controlnet = []
    place = None if model.controlnet is None else controlnet_place(model.controlnet)
    if place is not None and not place.is_on_hub:
        of_controlnet = controlnet_files(place.local)
    return unread_bytes([*in_directory, *of_controlnet, *{found.file for found in files.values()}])


def _content(directory: Path, files: Sequence[Path]) -> str:
    names = [file.relative_to(directory).as_posix() for file in files]
    return content_hash([list(pair) for pair in zip(names, file_contents(files), strict=True)])


def loaded_files(directory: Path, in_files: Collection[str] = ()) -> list[Path]:
    """The files of a pipeline. Its repository on a hub has the whole transformer beside them again, in one file.

    Args:
        directory: of the pipeline.
        in_files: components that are in single files: their weights in the directory are not loaded.
    """
    unused = {directory / name for name in in_files}
    return [
        file
        for file in _model_files(directory)
        if (file.parent != directory or file.stat().st_size <= LARGE_BYTES)
        and not (file.parent in unused and file.name != "config.json")
    ]


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
        files += (path for name in names if (path := Path(parent, name)).suffix in LOADED_SUFFIXES and path.is_file())
    return sorted(files)


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
            scenes = {"seed": dataset.seed, "height": dataset.height, "width": dataset.width}
            style = without_new_defaults("dataset", {"style": dataset.style})
            return common | scenes | _further(dataset.controls, dataset.references) | style
        case FolderDatasetConfig():
            masks, *further = (
                folder and _absolute(folder) for folder in (dataset.masks, dataset.controls, dataset.references)
            )
            return common | _files(dataset) | {"masks": masks} | _further(*further)
        case TableDatasetConfig():
            return common | _files(dataset) | _further(dataset.controls, dataset.references)
        case WebDatasetConfig():
            # Tars may be added to a folder or a pattern, so that a run can be extended.
            place: dict[str, Any] = {"path": _absolute(folder_of(dataset.path))}
            place |= {"members": asdict(dataset.members), "keys": dataset.keys}
            return common | _files(dataset) | place | _further(dataset.controls, dataset.references)
        case HubDatasetConfig():
            place = {"path": hub_place(dataset.path), "name": dataset.name, "split": dataset.split}
            place |= {"revision": dataset.revision, "columns": asdict(dataset.columns)}
            return common | _files(dataset) | place | _further(dataset.controls, dataset.references)
        case PromptsDatasetConfig():
            return common | {"path": _absolute(dataset.path)}


def _files(
    dataset: FolderDatasetConfig | TableDatasetConfig | WebDatasetConfig | HubDatasetConfig,
) -> dict[str, Any]:
    newer = {
        "images_are": dataset.images_are,
        "invert_mask": dataset.invert_mask,
        "mask_blur": dataset.mask_blur,
        "mask_padding": dataset.mask_padding,
    }
    return {
        "path": _absolute(dataset.path),
        "prompt": dataset.prompt,
        "alpha_mask": dataset.alpha_mask,
        "mask": dataset.mask,
    } | without_new_defaults("dataset", newer)


def _further(controls: str | None, references: str | None) -> dict[str, Any]:
    return without_new_defaults("dataset", {"controls": controls, "references": references})


def _lora(lora: LoraConfig) -> dict[str, Any]:
    """The content of LoRA files, not their paths, and their scales. Nothing for the default: older runs have none.

    Raises:
        ConfigError: a file cannot be read.
    """
    if not without_new_defaults("lora", asdict(lora)):
        return {}
    try:
        files = [file_content(lora_file(path)) for path in lora.paths]
    except (OSError, ValueError) as error:
        hint = "every machine needs the same files"
        raise ConfigError(Problem("lora.path", f"cannot be read ({error})", lora.path, hint)) from None
    mixing = {"mixing": True} if lora.mixing else {}  # it rounds differently
    return {"lora": {"files": files, "scale": lora.scales if lora.paths else lora.scale} | mixing}


def _redux(redux: ReduxConfig) -> dict[str, Any]:
    """The content of the directory of Redux or its commit on a hub, and how its tokens are used."""
    values = without_new_defaults("redux", asdict(redux))
    values.pop("revision", None)
    if place := redux_place(redux):
        values["path"] = _identity(place)
    return {"redux": values} if values else {}


def _identity(place: HubDirectory) -> Any:
    """Of a directory a hash of its content, of a hub id its name and commit."""
    return [place.path, place.commit] if place.is_on_hub else directory_content(place.local)


def _ip_adapter(adapter: IpAdapterConfig) -> dict[str, Any]:
    """The content of the files of an IP-Adapter, not their paths, or the encoder's commit on a hub, and its factors.

    Raises:
        ConfigError: a file cannot be read.
    """
    values = without_new_defaults("ip_adapter", asdict(adapter))
    if adapter.path not in (None, RANDOM):
        try:
            values["path"] = file_content(Path(str(adapter.path)).expanduser())
        except (OSError, ValueError) as error:
            hint = "every machine needs the same file"
            raise ConfigError(Problem("ip_adapter.path", f"cannot be read ({error})", adapter.path, hint)) from None
    values.pop("image_encoder_revision", None)
    if place := image_encoder_place(adapter):
        values["image_encoder"] = _identity(place)
    return {"ip_adapter": values} if values else {}


def _output(output: OutputConfig) -> dict[str, Any]:
    quality = {} if output.format == "png" else {"quality": output.quality}
    return {"format": output.format, "paste": output.paste} | quality


def _absolute(path: str) -> str:
    if "://" in path:
        return path
    return os.path.abspath(Path(path).expanduser())
