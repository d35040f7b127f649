"""What of a config changes pixels: the run directory and every task key are named by a hash of it.

Left out on purpose: everything that only says how much is made, how fast, by whom or where it goes (limit, images per
sample, batch size, parallelism, tracking, output.dir), so that a run can be widened, moved and continued.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxexp.config.schema import (
    Dataset,
    FakeModel,
    FluxModel,
    FolderDataset,
    Model,
    Output,
    PromptsDataset,
    RunConfig,
    Sampling,
    ShapesDataset,
    TableDataset,
)
from fluxexp.records import content_hash

PIXELS_VERSION = 1
"""Raised when a change of fluxexp itself changes the pixels of an unchanged config."""


def fingerprint_payload(config: RunConfig) -> dict[str, Any]:
    """The part of `config` that changes pixels, as JSON-able values."""
    return {
        "pixels_version": PIXELS_VERSION,
        "model": _model(config.model),
        "scheduler": asdict(config.scheduler),
        "sampling": _sampling(config.sampling),
        "dataset": _dataset(config.dataset),
        "optimization": asdict(config.optimization),
        "output": _output(config.output),
    }


def fingerprint(config: RunConfig) -> str:
    """16 hex digits over `fingerprint_payload`."""
    return content_hash(fingerprint_payload(config))


def _model(model: Model) -> dict[str, Any]:
    if isinstance(model, FakeModel):
        return {"family": model.family, "resolution": model.resolution}
    return {
        "family": model.family,
        "dtype": model.dtype,
        "resolution": model.resolution,
        "weights": _weights(model),
    }


def _weights(model: FluxModel) -> Any:
    """A directory is known by its content, wherever it lies; anything else by its name and revision."""
    if model.weights == "random":
        return ["random", model.layout]
    path = Path(model.path).expanduser()
    if not path.is_dir():
        return [model.path, model.revision]
    files = sorted(file for pattern in ("*.json", "*.safetensors", "*.txt") for file in path.rglob(pattern))
    return content_hash([[file.relative_to(path).as_posix(), _file_identity(file)] for file in files])


def _file_identity(file: Path) -> object:
    """Text by its content; weights by their size and header, which names every tensor with its offsets."""
    if file.suffix != ".safetensors":
        return file.read_text(encoding="utf-8", errors="replace")
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
        stream.seek(max(file.stat().st_size - (1 << 16), 0))
        return [file.stat().st_size, head.hex(), stream.read().hex()]


def _sampling(sampling: Sampling) -> dict[str, Any]:
    values = asdict(sampling)
    for name in ("batch_size", "images_per_sample"):
        del values[name]
    if sampling.height is not None or sampling.width is not None:
        del values["max_pixels"]
    return values


def _dataset(dataset: Dataset) -> dict[str, Any]:
    common = {"kind": dataset.kind, "placement": dataset.placement}
    match dataset:
        case ShapesDataset():
            return common | {"seed": dataset.seed, "height": dataset.height, "width": dataset.width}
        case FolderDataset():
            masks = dataset.masks and _absolute(dataset.masks)
            return common | _files(dataset) | {"masks": masks}
        case TableDataset():
            return common | _files(dataset)
        case PromptsDataset():
            return common | {"path": _absolute(dataset.path)}


def _files(dataset: FolderDataset | TableDataset) -> dict[str, Any]:
    return {
        "path": _absolute(dataset.path),
        "prompt": dataset.prompt,
        "alpha_mask": dataset.alpha_mask,
        "mask": dataset.mask,
    }


def _output(output: Output) -> dict[str, Any]:
    quality = {} if output.format == "png" else {"quality": output.quality}
    return {"format": output.format, "paste": output.paste} | quality


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())
