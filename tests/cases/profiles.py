"""Minimal ICC profiles, made by hand after the specification of ICC version 2."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

D50 = (0.9642, 1.0, 0.8249)
P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
"""Red, green and blue of Display P3 as XYZ, adapted to D50."""
_HEADER_BYTES = 128


def rgb_profile(primaries: Sequence[Sequence[float]] = P3, gamma: float = 2.2) -> bytes:
    """A display profile with these primaries."""
    curve = _curve(gamma)
    colors = zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, primaries), strict=True)
    return _profile(b"mntr", b"RGB ", b"XYZ ", [*colors, (b"rTRC", curve), (b"gTRC", curve), (b"bTRC", curve)])


def gray_profile(gamma: float) -> bytes:
    """A profile of a grayscale scanner."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", [(b"kTRC", _curve(gamma))])


def cmyk_profile(ink: tuple[int, int, int]) -> bytes:
    """A printer profile: paper is white, full cyan has the Lab color `ink` (8 bits per value), other inks are black."""
    linear = bytes(range(256))
    corners = itertools.product((0, 1), repeat=4)  # the last ink varies fastest
    white, black = (255, 128, 128), (0, 128, 128)
    colors: dict[tuple[int, ...], tuple[int, int, int]] = {(0, 0, 0, 0): white, (1, 0, 0, 0): ink}
    table = b"".join(bytes(colors.get(corner, black)) for corner in corners)
    identity = b"".join(_fixed(value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + linear * 4 + table + linear * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", [(b"A2B0", lut)])


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Sequence[tuple[bytes, bytes]]) -> bytes:
    name = b"test"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" * 79
    tags = [(b"desc", description), (b"cprt", b"text\0\0\0\0CC0\0"), (b"wtpt", _xyz(D50)), *tags]
    table, data = struct.pack(">I", len(tags)), b""
    start = _HEADER_BYTES + 4 + 12 * len(tags)
    for tag, value in tags:
        table += tag + struct.pack(">II", start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(data), b"\0" * 4, 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + b"".join(map(_fixed, D50)) + b"\0" * 48
    return header + table + data


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
