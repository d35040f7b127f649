"""Keys of table rows."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fluxexp.data.key_hashes import Hashes, key_hash
from fluxexp.data.packed_texts import PackedTexts
from fluxexp.data.row import PASS_COLUMNS

_IDENTITY = ("prompt", "image", "mask", "truth", "size")
_DIGITS = 12
"""Hex digits of a hash of content."""
_BYTES = _DIGITS // 2
_encode = json.JSONEncoder(separators=(",", ":")).encode


class DuplicateKeyError(ValueError):
    """The rows `first` and `second`, counted from 1, have the same `key`."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(f"has the key {key!r} in rows {first} and {second}")


class RowKeys(Sequence[str]):
    """Collects a unique key for each row: the value of its `key` column, else a hash of its content.

    So the key of a row does not change when other rows are added or removed. Further rows with the same content have
    the suffixes -2, -3, and so on. A key that is a hash takes 20 bytes, a given one its own length besides.

    Args:
        further: names of more columns that belong to the content, where a row has a value.
    """

    def __init__(self, further: Sequence[str] = ()) -> None:
        self._further = further
        self._contents = bytearray()
        self._identities = bytearray()
        self._hashes = array("Q")
        self._given: PackedTexts | None = None
        """Given keys by row, empty for a row without one. None: no row has one."""
        self._unreadable: set[int] = set()
        self._counts: array[int] | None = None
        """The suffix of each row, 0 for none. None: all rows differ."""

    def add(self, row: Mapping[str, Any] | None) -> None:
        """Add the key of the next row. `row` is None if it cannot be read."""
        index = len(self._hashes)
        content = bytes(_BYTES) if row is None else bytes.fromhex(content_key(row, self._further))
        self._contents += content
        self._identities += bytes(_BYTES) if row is None else _identity(row, content)
        given = None if row is None else row.get("key")
        if row is None:
            self._unreadable.add(index)
        if given is not None and self._given is None:
            self._given = PackedTexts([""] * index)
        if self._given is not None:
            self._given.append("" if given is None else f"{given}\0")
        self._hashes.append(key_hash(self._base(index)))

    def finish(self) -> None:
        """Make the keys unique, after the last row.

        Raises:
            DuplicateKeyError: two rows have the same value in the `key` column.
        """
        hashes = np.frombuffer(self._hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        is_same = hashes[order[1:]] == hashes[order[:-1]]
        repeated = np.sort(order[1:][is_same])
        if not len(repeated):
            return
        ordered = hashes[order]
        self._counts = array("I", bytes(4 * len(hashes)))
        last: dict[str, int] = {}
        for index in repeated.tolist():
            base = self._base(index)
            if self._has_given(index):
                first = int(order[np.searchsorted(ordered, hashes[index])])
                raise DuplicateKeyError(base, first + 1, index + 1)
            count = last.get(base, 1) + 1
            while (place := self._place_of(f"{base}-{count}", ordered, order)) is not None:
                if place > index:
                    raise DuplicateKeyError(f"{base}-{count}", index + 1, place + 1)
                count += 1
            last[base] = self._counts[index] = count

    @staticmethod
    def _place_of(name: str, ordered: Hashes, order: npt.NDArray[np.intp]) -> int | None:
        """The first row whose key is `name` without a suffix."""
        wanted = np.uint64(key_hash(name))
        place = int(np.searchsorted(ordered, wanted))
        return int(order[place]) if place < len(ordered) and ordered[place] == wanted else None

    def _has_given(self, index: int) -> bool:
        return self._given is not None and self._given[index] != ""

    def _base(self, index: int) -> str:
        """The key of a row without its suffix."""
        if self._given is not None and (given := self._given[index]):
            return given[:-1]
        if index in self._unreadable:
            return "unreadable"
        return self._contents[index * _BYTES : (index + 1) * _BYTES].hex()

    def __len__(self) -> int:
        return len(self._hashes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        count = 0 if self._counts is None else self._counts[index]
        return f"{self._base(index)}-{count}" if count else self._base(index)

    def identity(self, index: int) -> str:
        """Hash of the content of a row when it was added; empty for a row that cannot be read."""
        digest = self._identities[index * _BYTES : (index + 1) * _BYTES]
        return digest.hex() if any(digest) else ""


class FirstKeys(Sequence[str]):
    """The first keys of a table."""

    def __init__(self, keys: RowKeys, limit: int | None) -> None:
        self._keys = keys
        self._length = len(keys) if limit is None else min(limit, len(keys))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._keys[index]


def content_key(row: Mapping[str, Any], further: Sequence[str] = ()) -> str:
    """A short hash of a row's content. It is the same for .csv, .jsonl and .parquet."""
    parts: list[Any] = [None if (value := row.get(name)) is None else str(value) for name in _IDENTITY]
    parts += [[name, str(value)] for name in further if (value := row.get(name)) is not None]
    return hashlib.sha256(_encode(parts).encode()).hexdigest()[:_DIGITS]


def _identity(row: Mapping[str, Any], content: bytes) -> bytes:
    """The `content_key`, combined with the settings of the row, if it has any."""
    guidance = row.get("guidance")
    settings = [] if guidance is None else [str(guidance)]
    settings += [f"{name}={row[name]}" for name in ("lora", "lora_scale", *PASS_COLUMNS) if row.get(name) is not None]
    if not settings:
        return content
    return hashlib.sha256(_encode([content.hex(), *settings]).encode()).digest()[:_BYTES]
