"""Randomness that is the same on every machine, Python and numpy version.

Built on `random.Random.random()` alone: it is the one method whose sequence Python promises to keep.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class StableRandom:
    """A stream of random choices that depends on nothing but the `parts` it is made from."""

    def __init__(self, *parts: str | int) -> None:
        digest = hashlib.sha256(json.dumps(parts).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:16], "big")).random

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self._random() < probability

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self._random() * count)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, each as likely."""
        return options[self.below(len(options))]

    def shuffle(self, options: Sequence[T]) -> list[T]:
        """All of `options` in random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in options]
