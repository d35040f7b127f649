"""Reads the header of a GGUF file: names, types and shapes of all tensors, without the values. Never imports torch.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from fluxexp.config.weight_headers import ComponentError, StoredTensor, Tensors, check_file

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = "general.alignment"
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_VALUE_BYTES: Mapping[int, int] = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value in the metadata, by its type."""
_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
"""Name, values of a block and bytes of a block, by the number of the type: those that diffusers dequantizes."""
_MAX_COUNT, _MAX_TEXT_BYTES = 1_000_000, 100_000_000
"""Larger numbers are those of a damaged file."""
GGUF_TYPES = frozenset(name for name, _, _ in _TYPES.values())
"""Names of the types that fluxexp reads."""


def gguf_tensors(file: Path) -> Tensors:
    """Read the header of a GGUF file. Shapes have the order of PyTorch: rows first.

    Raises:
        ComponentError: the file is missing, damaged, truncated, or has weights of a type that diffusers does not read.
    """
    check_file(file)
    with file.open("rb") as stream:
        try:
            tensors, end = _header(stream)
        except (struct.error, ValueError, OverflowError, RecursionError, OSError) as error:
            raise ComponentError(f"{file.name} has a damaged GGUF header ({error})", "download it again") from error
    size = file.stat().st_size
    if size < end:
        raise ComponentError(f"{file.name} is truncated: it has {size:,} bytes of {end:,}", "download it again")
    return tensors


def _header(stream: BinaryIO) -> tuple[dict[str, StoredTensor], int]:
    """The tensors, and the number of bytes that the file needs."""
    if stream.read(4) != _MAGIC:
        raise ValueError("it does not start with GGUF")
    (version,) = _read(stream, "I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}")
    num_tensors, num_values = _read(stream, "QQ")
    if max(num_tensors, num_values) > _MAX_COUNT:
        raise ValueError(f"{num_tensors} tensors")
    alignment = 32
    for _ in range(num_values):
        name = _text(stream)
        (kind,) = _read(stream, "I")
        if name == _ALIGNMENT and kind == _UINT32:
            (alignment,) = _read(stream, "I")
        else:
            _skip(stream, kind)
    tensors, end = {}, 0
    for _ in range(num_tensors):
        name = _text(stream)
        tensor, last = _tensor(stream, name)
        tensors[name], end = tensor, max(end, last)
    start = -(-stream.tell() // alignment) * alignment if alignment else 0
    return tensors, start + end


def _tensor(stream: BinaryIO, name: str) -> tuple[StoredTensor, int]:
    """A tensor, and the offset of its end in the data."""
    (dimensions,) = _read(stream, "I")
    if not 1 <= dimensions <= 4:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = _read(stream, f"{dimensions}Q")
    number, offset = _read(stream, "IQ")
    if number not in _TYPES:
        hint = f"use a file with one of {', '.join(sorted(GGUF_TYPES))}"
        raise ComponentError(f"{name} has GGUF type {number}, which diffusers does not dequantize", hint)
    kind, values, size = _TYPES[number]
    total = 1
    for length in shape:
        total *= length
    if shape[0] % values:
        raise ValueError(f"{name} has rows of {shape[0]} values, which are not whole blocks of {kind}")
    return StoredTensor(kind, tuple(reversed(shape))), offset + total // values * size


def _skip(stream: BinaryIO, kind: int) -> None:
    """Skip a value of the metadata."""
    if kind == _STRING:
        _text(stream)
    elif kind == _ARRAY:
        inner, length = _read(stream, "IQ")
        if inner in _VALUE_BYTES:
            stream.seek(_VALUE_BYTES[inner] * length, 1)
        else:
            for _ in range(min(length, _MAX_TEXT_BYTES)):
                _skip(stream, inner)
    elif kind in _VALUE_BYTES:
        stream.seek(_VALUE_BYTES[kind], 1)
    else:
        raise ValueError(f"a value of type {kind}")


def _text(stream: BinaryIO) -> str:
    (length,) = _read(stream, "Q")
    if length > _MAX_TEXT_BYTES:
        raise ValueError(f"a text of {length} bytes")
    data = stream.read(length)
    if len(data) < length:
        raise ValueError("it ends within a text")
    return data.decode("utf-8")


def _read(stream: BinaryIO, layout: str) -> tuple[int, ...]:
    """Little-endian numbers without padding."""
    size = struct.calcsize(f"<{layout}")
    return struct.unpack(f"<{layout}", stream.read(size))
