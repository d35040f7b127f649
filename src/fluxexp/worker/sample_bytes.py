"""How much memory decoded samples need: measured, or estimated before they are read."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from PIL.Image import Image

from fluxexp.data import Placed
from fluxexp.records import Sample
from fluxexp.worker.assignment import Assignment

_BYTES_PER_PIXEL = 8
"""Of a sample whose like was never read: image (3), mask (1), ground truth (3), and a rest."""
_UNKNOWN_PIXELS = 4_000_000
"""Assumed if the size is not known before the sample is read."""


def sample_bytes(sample: Sample, placed: Placed | None) -> int:
    """Bytes of the decoded images of a sample, at its own and at its working size."""
    images = [sample.image, sample.mask, sample.truth, sample.opacity, sample.rgba]
    images += [sample.control_image, *sample.references]
    if placed is not None:
        images += [placed.image, placed.mask, placed.control_image, *placed.references]
    unique = {id(image): image for image in images if image is not None}
    return sum(map(_image_bytes, unique.values()))


def estimated_bytes(assignment: Assignment) -> int:
    """Bytes that the sample of a task will probably need. Reads at most the header of its image file."""
    size = assignment.order.dataset.size(assignment.task.index)
    return _BYTES_PER_PIXEL * (_UNKNOWN_PIXELS if size is None else size[0] * size[1])


def total_bytes(samples: Iterable[tuple[Sample, Placed]]) -> int:
    """Bytes of several samples. One that occurs several times counts once."""
    unique = {id(sample): (sample, placed) for sample, placed in samples}
    return sum(sample_bytes(sample, placed) for sample, placed in unique.values())


def _image_bytes(image: Image) -> int:
    return image.width * image.height * len(image.getbands())


class ByteBudget:
    """Bytes that may be held at once. A single holder may exceed the limit, so that no item waits for ever."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    def try_acquire(self, amount: int) -> bool:
        """Hold `amount` if there is room."""
        with self._changed:
            return self._take(amount)

    def acquire(self, amount: int) -> None:
        """Wait for room, and hold `amount`."""
        with self._changed:
            self._changed.wait_for(lambda: self._take(amount))

    def release(self, amount: int) -> None:
        """End a hold of `amount`."""
        with self._changed:
            self._held -= amount
            self._changed.notify_all()

    def _take(self, amount: int) -> bool:
        if self._held and self._held + amount > self._limit:
            return False
        self._held += amount
        return True
