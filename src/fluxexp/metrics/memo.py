"""Values that several metrics, or several results of one sample, need, and that are computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class _CacheSlot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_known = False
        self.value: Any = None


class Memo:
    """Computed values by key. Thread-safe: while one thread computes a value, others that need it wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[Hashable, _CacheSlot] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, which the first call computes. If `compute` fails, the next call computes again."""
        with self._lock:
            slot = self._slots.setdefault(key, _CacheSlot())
        with slot.lock:
            if not slot.is_known:
                slot.value = compute()
                slot.is_known = True
            value: T = slot.value
            return value
