"""Random numbers that are the same on every machine, and with every version of Python and NumPy.

They come only from `random.Random.random()`: Python guarantees that its sequence for a seed does not change.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class StableRandom:
    """A random number generator. Its sequence depends only on `parts`."""

    def __init__(self, *parts: str | int) -> None:
        digest = hashlib.sha256(json.dumps(parts).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:16], "big")).random

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """True with the given `probability`."""
        return self._random() < probability

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self._random() * count)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, all with the same probability."""
        return options[self.below(len(options))]

    def shuffle(self, options: Sequence[T]) -> list[T]:
        """A list of all `options` in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in options]
