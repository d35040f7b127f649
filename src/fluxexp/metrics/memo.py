"""Values that several metrics, or several results of one sample, need, and that are computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class _Computed:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_known = False
        self.value: Any = None


class Memo:
    """Computed values by key. Thread-safe: while one thread computes a value, others that need it wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Computed] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, which the first call computes. If `compute` fails, the next call computes again."""
        with self._lock:
            entry = self._entries.setdefault(key, _Computed())
        with entry.lock:
            if not entry.is_known:
                entry.value = compute()
                entry.is_known = True
            value: T = entry.value
            return value
