"""Keys of table rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.data.row import PASS_COLUMNS

_IDENTITY = ("prompt", "image", "mask", "truth", "size")
_DIGITS = 12
"""Hex digits of a hash of content."""
_encode = json.JSONEncoder(separators=(",", ":")).encode


class DuplicateKeyError(ValueError):
    """The rows `first` and `second`, counted from 1, have the same `key`."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(f"has the key {key!r} in rows {first} and {second}")


class RowKeys:
    """Collects a unique key for each row: the value of its `key` column, else a hash of its content.

    So the key of a row does not change when other rows are added or removed. Further rows with the same content have
    the suffixes -2, -3, and so on.

    Args:
        further: names of more columns that belong to the content, where a row has a value.
    """

    def __init__(self, further: Sequence[str] = ()) -> None:
        self._further = further
        self.names: list[str] = []
        self._identities = bytearray()
        self._taken: set[str] = set()
        self._copies: dict[str, int] = {}

    def add(self, row: Mapping[str, Any] | None) -> None:
        """Add the key of the next row. `row` is None if it cannot be read.

        Raises:
            DuplicateKeyError: another row has the same value in its `key` column.
        """
        given = None if row is None else row.get("key")
        if given is not None:
            name = str(given)
            if name in self._taken:
                raise DuplicateKeyError(name, self.names.index(name) + 1, len(self.names) + 1)
        else:
            name = self._distinct("unreadable" if row is None else content_key(row, self._further))
        self._taken.add(name)
        self.names.append(name)
        self._identities += bytes(_DIGITS // 2) if row is None else bytes.fromhex(_identity(row, self._further))

    def identity(self, index: int) -> str:
        """Hash of the content of a row when it was added; empty for a row that cannot be read."""
        size = _DIGITS // 2
        digest = self._identities[index * size : (index + 1) * size]
        return digest.hex() if any(digest) else ""

    def _distinct(self, name: str) -> str:
        if name not in self._taken:
            return name
        count = self._copies.get(name, 1) + 1
        while f"{name}-{count}" in self._taken:
            count += 1
        self._copies[name] = count
        return f"{name}-{count}"


def content_key(row: Mapping[str, Any], further: Sequence[str] = ()) -> str:
    """A short hash of a row's content. It is the same for .csv, .jsonl and .parquet."""
    parts: list[Any] = [None if (value := row.get(name)) is None else str(value) for name in _IDENTITY]
    parts += [[name, str(value)] for name in further if (value := row.get(name)) is not None]
    return hashlib.sha256(_encode(parts).encode()).hexdigest()[:_DIGITS]


def _identity(row: Mapping[str, Any], further: Sequence[str]) -> str:
    """The `content_key`, combined with the settings of the row, if it has any."""
    guidance, content = row.get("guidance"), content_key(row, further)
    settings = [] if guidance is None else [str(guidance)]
    settings += [f"{name}={row[name]}" for name in ("lora", "lora_scale", *PASS_COLUMNS) if row.get(name) is not None]
    if not settings:
        return content
    return hashlib.sha256(_encode([content, *settings]).encode()).hexdigest()[:_DIGITS]
