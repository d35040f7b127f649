"""Batch sizes, and the choice of the items that form the next batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_TOKENS_PER_GPU_BATCH = 8192
"""A larger batch of FLUX is hardly faster per image: one image of 1024 x 1024 (4608 tokens with text) keeps a GPU busy,
at 512 x 512 (1536 tokens) about five do."""
_TOKENS_PER_CPU_BATCH = 1024
_BYTES_PER_TOKEN = 1 << 20
"""Upper estimate of the memory per token of an image in work. The VAE decoder needs most of it."""
_MOST = 16


def automatic_batch_size(tokens: int, free_bytes: int | None) -> int:
    """Batch size for images of `tokens` tokens each (text included).

    Args:
        tokens: of one image; at least 1.
        free_bytes: free memory on the GPU; None on a CPU.
    """
    full = full_batch_size(tokens, is_cpu=free_bytes is None)
    return full if free_bytes is None else max(1, min(full, free_bytes // (tokens * _BYTES_PER_TOKEN)))


def full_batch_size(tokens: int, is_cpu: bool) -> int:
    """Batch size above which a larger batch is hardly faster per image."""
    return max(1, min((_TOKENS_PER_CPU_BATCH if is_cpu else _TOKENS_PER_GPU_BATCH) // tokens, _MOST))


class BatchSizes:
    """The batch size of each shape on this device: chosen once, and halved permanently after out of memory.

    Args:
        choose: gives the first batch size of a shape.
        memory: the part of a shape that determines its memory use. Shapes with equal parts share a batch size.
    """

    def __init__(self, choose: Callable[[Any], int], memory: Callable[[Any], Hashable] = lambda shape: shape) -> None:
        self._choose = choose
        self._memory = memory
        self._sizes: dict[Hashable, int] = {}

    def __getitem__(self, shape: Hashable) -> int:
        key = self._memory(shape)
        if key not in self._sizes:
            self._sizes[key] = self._choose(shape)
        return self._sizes[key]

    def halve(self, shape: Hashable, failed: int) -> bool:
        """Halve the batch size after a batch of `failed` items ran out of memory; False if it is already 1."""
        if failed <= 1:
            return False
        self._sizes[self._memory(shape)] = failed // 2
        return True


def next_batch(waiting: Sequence[T], shape: Callable[[T], Hashable], sizes: BatchSizes) -> list[int]:
    """Indices into `waiting` of the next batch: the first full batch, else the first item and all others of its shape.

    So no item waits forever: if no batch is full, the first item is in the next batch.
    """
    groups = _by_shape(waiting, shape)
    full = (group[: sizes[kind]] for kind, group in groups.items() if len(group) >= sizes[kind])
    return next(full, next(iter(groups.values())))


def is_batch_full(waiting: Sequence[T], shape: Callable[[T], Hashable], sizes: BatchSizes) -> bool:
    """Whether any shape has enough items for a full batch."""
    return any(len(group) >= sizes[kind] for kind, group in _by_shape(waiting, shape).items())


def _by_shape(waiting: Sequence[T], shape: Callable[[T], Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(waiting):
        groups.setdefault(shape(item), []).append(index)
    return groups
