"""Remembers what a network last said: several metrics ask for the same picture, and points of a sweep share truths."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from fluxexp.arrays import ImageArray

Question = TypeVar("Question")
Answer = TypeVar("Answer")

KEPT = 64
"""Answers, a few kilobytes each: more than all threads of a rank work on at a time."""


class RecentResults(Generic[Question, Answer]):
    """`ask`, with its last answers kept. Safe in several threads if `ask` is; two may ask the same at once."""

    def __init__(self, ask: Callable[[Question], Answer], key: Callable[[Question], Hashable]) -> None:
        self._ask = ask
        self._key = key
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, question: Question) -> Answer:
        """The answer, asked for anew only where it was not asked for lately."""
        key = self._key(question)
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return self._answers[key]
        answer = self._ask(question)
        with self._lock:
            self._answers[key] = answer
            if len(self._answers) > KEPT:
                self._answers.popitem(last=False)
        return answer


def content_of(pixels: ImageArray) -> Hashable:
    """Tells pictures apart by what they show; a few milliseconds for a megapixel."""
    return pixels.shape, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
