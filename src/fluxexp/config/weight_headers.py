"""Finds the weight files of a component and reads their headers: names and shapes of all tensors, without the values.

A safetensors file starts with the length of its header (8 bytes, little endian), and the header is JSON with name,
shape and data offsets of each tensor (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: its dtype, by the name that the format gives it (`BF16`, `F8_E4M3`), and its shape."""

    dtype: str
    shape: tuple[int, ...]


Tensors = Mapping[str, StoredTensor]
"""Tensors by name."""

_LFS = b"version https://git-lfs"
_AGAIN = "download it again"
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""


class ComponentError(Exception):
    """A file of a component is missing or damaged. The message names it; `hint` says what to do."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ComponentError: the file is missing, empty, an LFS pointer, or no JSON object.
    """
    check_file(file)
    try:
        text = file.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):  # the libraries do not read it
            raise ComponentError(f"{_name(file)} starts with a byte order mark", "save it as UTF-8 without one")
        values = json.loads(text)
    except ValueError as error:
        raise ComponentError(f"{_name(file)} is damaged ({error})", _AGAIN) from error
    if not isinstance(values, dict):
        raise ComponentError(f"{_name(file)} is damaged (it holds no JSON object)", _AGAIN)
    return values


def check_file(file: Path) -> None:
    """Check that a file has content of its own.

    Raises:
        ComponentError: it is missing, unreadable, empty, or an LFS pointer.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS))
    except FileNotFoundError as error:
        raise ComponentError(f"{_name(file)} is missing", _AGAIN) from error
    except OSError as error:
        raise ComponentError(f"{_name(file)} cannot be read ({error.strerror})", "check its permissions") from error
    if not start:
        raise ComponentError(f"{_name(file)} is empty", _AGAIN)
    if start == _LFS:
        raise ComponentError(f"{_name(file)} is a Git LFS pointer, not the file", "run `git lfs pull` in the directory")


def has_weights(directory: Path, stem: str, variant: str | None = None) -> bool:
    """Whether a component has weights of this variant, or, for None, without a variant."""
    return any((directory / name).is_file() for name in _names(stem, variant))


def variants(directory: Path, stem: str) -> list[str]:
    """The variants of a component's weights."""
    files = [file.name for file in directory.glob(f"{stem}.*.safetensors") if "-of-" not in file.name]
    single = {name.split(".")[1] for name in files}
    sharded = {file.name.split(".")[-2] for file in directory.glob(f"{stem}.safetensors.index.*.json")}
    return sorted(single | sharded)


def tensor_shapes(directory: Path, stem: str, variant: str | None) -> Shapes:
    """Read names and shapes of all tensors of a component; see `weight_files`.

    Raises:
        ComponentError: files are missing or damaged.
    """
    files = weight_files(directory, stem, variant)
    return {name: tensor.shape for file in files for name, tensor in file_tensors(file).items()}


def weight_files(directory: Path, stem: str, variant: str | None) -> list[Path]:
    """List the files with the weights of a component: one file, or its shards.

    Args:
        directory: of the component.
        stem: start of the file names, `model` for transformers and `diffusion_pytorch_model` for diffusers.
        variant: see `model.variant`; a component without it has the files without a variant.

    Raises:
        ComponentError: there are no files, or the index of the shards is missing or damaged.
    """
    used = variant if variant and has_weights(directory, stem, variant) else None
    index, single = (directory / name for name in _names(stem, used))
    # Both libraries read one of them if both exist: transformers the single file, diffusers the index.
    if single.is_file() and not (index.is_file() and stem != "model"):
        return [single]
    if index.is_file():
        return _shards(index)
    raise _no_weights(directory, stem)


def _names(stem: str, variant: str | None) -> tuple[str, str]:
    """File names of the index of shards, and of weights in a single file."""
    if variant is None:
        return f"{stem}.safetensors.index.json", f"{stem}.safetensors"
    return f"{stem}.safetensors.index.{variant}.json", f"{stem}.{variant}.safetensors"


def _no_weights(directory: Path, stem: str) -> ComponentError:
    place = f"{directory.name}/"
    if shards := sorted(directory.glob(f"{stem}*-of-*.safetensors")):
        index = _names(stem, None)[0]
        return ComponentError(f"{place} has {len(shards)} shard(s), but {index} is missing", _AGAIN)
    hint = f"fluxexp reads {stem}.safetensors, or shards of it, and no other format"
    return ComponentError(f"{place} has no weights in safetensors", hint)


def file_shapes(file: Path) -> Shapes:
    """Read the shapes of the tensors of one safetensors file; see `file_tensors`."""
    return {name: tensor.shape for name, tensor in file_tensors(file).items()}


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ComponentError(f"{_name(index)} is damaged (it has no weight_map)", _AGAIN)
    return [index.parent / shard for shard in sorted({str(name) for name in weight_map.values()})]


def file_tensors(file: Path) -> Tensors:
    """Read the header of a safetensors file.

    Raises:
        ComponentError: the file is missing, damaged or truncated.
    """
    check_file(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise ComponentError(f"{_name(file)} is damaged or truncated ({size:,} bytes)", _AGAIN)
        try:
            header = json.loads(stream.read(length))
            tensors = {name: values for name, values in header.items() if name != "__metadata__"}
            end = 8 + length + max((values["data_offsets"][1] for values in tensors.values()), default=0)
            found = {
                name: StoredTensor(str(values["dtype"]), tuple(int(n) for n in values["shape"]))
                for name, values in tensors.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ComponentError(f"{_name(file)} has a damaged header ({error})", _AGAIN) from error
    if size != end:
        what = "truncated" if size < end else "damaged"
        raise ComponentError(f"{_name(file)} is {what}: it has {size:,} bytes instead of {end:,}", _AGAIN)
    return found


def _name(file: Path) -> str:
    """The file with its component, as in `vae/config.json`; at the top of a model its name alone."""
    return file.name if file.name == "model_index.json" else f"{file.parent.name}/{file.name}"
