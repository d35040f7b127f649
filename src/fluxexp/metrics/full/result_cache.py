"""A cache for results of networks. Several metrics use the same image, and points of a sweep share ground truths."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from fluxexp.arrays import ImageArray

Input = TypeVar("Input")
Result = TypeVar("Result")

CAPACITY = 64
"""Number of results, a few kilobytes each. All threads of a rank together work on fewer images at a time."""


class ResultCache(Generic[Input, Result]):
    """An LRU cache of `compute`. Thread-safe if `compute` is; two threads can compute the same result at once."""

    def __init__(self, compute: Callable[[Input], Result], key: Callable[[Input], Hashable]) -> None:
        self._compute = compute
        self._key = key
        self._results: OrderedDict[Hashable, Result] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, value: Input) -> Result:
        """The result for `value`, from the cache if possible."""
        key = self._key(value)
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        result = self._compute(value)
        with self._lock:
            self._results[key] = result
            if len(self._results) > CAPACITY:
                self._results.popitem(last=False)
        return result


def image_digest(pixels: ImageArray) -> Hashable:
    """A cache key for the content of an image. Takes a few milliseconds per megapixel."""
    return pixels.shape, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
