"""Keys of the rows of a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_IDENTITY = ("prompt", "image", "mask", "truth", "size")
_encode = json.JSONEncoder(separators=(",", ":")).encode


class DuplicateKeyError(ValueError):
    """Two rows, `first` and `second` (from 1), say the same `key`."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(f"has the key {key!r} in rows {first} and {second}")


class RowKeys:
    """Names rows as they pass: by their `key`, else by a hash of what they say, so that a row keeps its name when
    others come or go. The second and further rows that say the same have -2, -3, ... behind.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._taken: set[str] = set()
        self._copies: dict[str, int] = {}

    def add(self, row: Mapping[str, Any] | None) -> None:
        """Name the next row; None for one that cannot be read.

        Raises:
            DuplicateKeyError: its `key` is another row's.
        """
        given = None if row is None else row.get("key")
        if given is not None:
            name = str(given)
            if name in self._taken:
                raise DuplicateKeyError(name, self.names.index(name) + 1, len(self.names) + 1)
        else:
            name = self._distinct("unreadable" if row is None else content_key(row))
        self._taken.add(name)
        self.names.append(name)

    def _distinct(self, name: str) -> str:
        if name not in self._taken:
            return name
        count = self._copies.get(name, 1) + 1
        while f"{name}-{count}" in self._taken:
            count += 1
        self._copies[name] = count
        return f"{name}-{count}"


def content_key(row: Mapping[str, Any]) -> str:
    """A short name for what a row says; the same for .csv, .jsonl and .parquet."""
    parts = [None if (value := row.get(name)) is None else str(value) for name in _IDENTITY]
    return hashlib.sha256(_encode(parts).encode()).hexdigest()[:12]
