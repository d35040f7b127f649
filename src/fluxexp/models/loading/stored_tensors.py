"""Reads tensors of single files and of quantized directories, and dequantizes them.

A weight is dequantized in float32 and rounded once to the model's dtype. `config/stored_weights.py` says where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from fluxexp.config.checkpoint_files import GGUF
from fluxexp.config.stored_weights import BITSANDBYTES_STATES, StoredWeight

_STATE_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_INT8_MAX = 127.0


class TensorReader(Protocol):
    """Reads the tensors of a component, by their names in the file without prefix."""

    def rows(self, name: str, start: int, count: int | None) -> torch.Tensor:
        """Rows of a tensor as they are stored; dequantized if the file has blocks of GGUF. None: all from `start`."""
        ...

    def find(self, name: str) -> torch.Tensor | None:
        """A whole tensor, or None if there is none."""
        ...


def open_tensors(files: Sequence[Path], prefix: str = "") -> TensorReader:
    """Open files of one component.

    Args:
        files: one file, or shards.
        prefix: start of the names of its tensors in the files.
    """
    return _GgufReader(files[0], prefix) if files[0].suffix == GGUF else _SafetensorsReader(files, prefix)


class _SafetensorsReader:
    def __init__(self, files: Sequence[Path], prefix: str) -> None:
        self._prefix = prefix
        # The files stay mapped until the reader is freed: only what is read takes memory.
        opened: list[Any] = [safe_open(file, framework="pt") for file in files]
        self._file_of = {name: handle for handle in opened for name in handle.keys()}  # noqa: SIM118

    def rows(self, name: str, start: int, count: int | None) -> torch.Tensor:
        name = f"{self._prefix}{name}"
        if start == 0 and count is None:
            return self._file_of[name].get_tensor(name)  # type: ignore[no-any-return]
        stop = None if count is None else start + count
        return self._file_of[name].get_slice(name)[start:stop]  # type: ignore[no-any-return]

    def find(self, name: str) -> torch.Tensor | None:
        whole = f"{self._prefix}{name}"
        return self.rows(name, 0, None) if whole in self._file_of else None


class _GgufReader:
    def __init__(self, file: Path, prefix: str) -> None:
        from gguf import GGUFReader

        self._prefix = prefix
        self._tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}

    def rows(self, name: str, start: int, count: int | None) -> torch.Tensor:
        from gguf import GGMLQuantizationType as Kind

        tensor = self._tensors[f"{self._prefix}{name}"]
        # `data` has a row of the tensor in each row: numbers, or the bytes of its blocks.
        stored = torch.from_numpy(tensor.data[start : None if count is None else start + count].copy())
        if tensor.tensor_type in (Kind.F32, Kind.F16):
            return stored
        return _dequantize_blocks(stored.view(torch.uint8), tensor.tensor_type)

    def find(self, name: str) -> torch.Tensor | None:
        return self.rows(name, 0, None) if f"{self._prefix}{name}" in self._tensors else None


def _dequantize_blocks(rows: torch.Tensor, kind: Any) -> torch.Tensor:
    """Dequantize rows of GGUF with the functions of diffusers, in float32. Its layers use float16 for the scales."""
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, dequantize_functions

    values, size = GGML_QUANT_SIZES[kind]
    blocks = dequantize_functions[kind](rows.reshape(-1, size), values, size, dtype=torch.float32)
    dequantized: torch.Tensor = blocks.reshape(*rows.shape[:-1], -1)
    return dequantized


def read_weight(reader: TensorReader, weight: StoredWeight, dtype: torch.dtype) -> torch.Tensor:
    """Read a tensor of a component in `dtype`."""
    piece = weight.piece
    if weight.storage == "bitsandbytes_4bit":
        values = _dequantize_4bit(reader, piece.source)[piece.start : _stop(weight)]
    else:
        values = reader.rows(piece.source, piece.start, piece.rows)
        if weight.storage == "bitsandbytes_8bit":
            values = values.float() * read_scales(reader, weight) * (1 / _INT8_MAX)
        elif weight.storage in ("fp8", "fp8_e5m2"):
            values = values.float()
            if weight.scale is not None:
                scales = read_scales(reader, weight)
                values *= scales.view(-1, *[1] * (values.ndim - 1))
    if piece.swaps_halves:
        values = torch.cat(values.chunk(2)[::-1])
    return values.reshape(weight.shape).to(dtype).contiguous()


def read_scales(reader: TensorReader, weight: StoredWeight) -> torch.Tensor:
    """The scale of each row of a weight, or of all rows: float32, (rows, 1) or (1, 1). Without a stored scale, 1."""
    found = None if weight.scale is None else reader.find(weight.scale)
    if found is None:
        return torch.ones(1, 1)
    scales = found.float().reshape(-1, 1)
    return scales if len(scales) == 1 else scales[weight.piece.start : _stop(weight)]


def _stop(weight: StoredWeight) -> int | None:
    return None if weight.piece.rows is None else weight.piece.start + weight.piece.rows


def _dequantize_4bit(reader: TensorReader, name: str) -> torch.Tensor:
    """A weight of bitsandbytes in the dtype that it had before it was quantized."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state: dict[str, Any] = {}
    for part in (*_STATE_PARTS, *BITSANDBYTES_STATES):
        if (found := reader.find(f"{name}.{part}")) is not None:
            state[part] = found
    # On the host, so that the values do not depend on the device, and no rank takes memory of another rank's GPU.
    restored = QuantState.from_dict(state, device=torch.device("cpu"))
    return dequantize_4bit(reader.rows(name, 0, None), restored)  # type: ignore[no-any-return]
