"""Packs many numbers into short texts, for messages between ranks."""

from __future__ import annotations

import base64
import zlib
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def pack_numbers(numbers: Sequence[int], total: int) -> str:
    """Different numbers below `total` as compressed text. A million numbers take a few kilobytes."""
    flags = np.zeros(total, dtype=np.bool_)
    flags[np.asarray(numbers, dtype=np.int64)] = True
    return _text(np.packbits(flags, bitorder="little").tobytes())


def unpack_numbers(text: str) -> array[int]:
    """Inverse of `pack_numbers`. The numbers are sorted."""
    bits = np.frombuffer(_bytes(text), dtype=np.uint8)
    return _array(np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.int32))


def pack_counts(counts: Sequence[int]) -> str:
    """Numbers from 0 to 2**31 - 1 as compressed text. It is short if most of them are equal."""
    values = np.asarray(counts, dtype="<i4")
    return _text(values.view(np.uint8).reshape(-1, 4).T.tobytes())  # first all low bytes, which differ most


def unpack_counts(text: str) -> array[int]:
    """Inverse of `pack_counts`."""
    planes = np.frombuffer(_bytes(text), dtype=np.uint8).reshape(4, -1)
    return _array(np.ascontiguousarray(planes.T).view("<i4").reshape(-1).astype(np.int32))


def _array(values: npt.NDArray[np.int32]) -> array[int]:
    return array("i", values.tobytes())


def _text(data: bytes) -> str:
    return base64.b85encode(zlib.compress(data)).decode()


def _bytes(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
