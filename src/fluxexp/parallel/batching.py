"""How many images go through the model at once, and which of those at hand go together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_TOKENS_PER_GPU_BATCH = 8192
"""Where a larger batch stops paying on FLUX: one image of 1024 x 1024 (4608 tokens with its text) keeps a GPU busy,
at 512 x 512 (1536) a handful does."""
_TOKENS_PER_CPU_BATCH = 1024
_BYTES_PER_TOKEN = 1 << 20
"""Memory that an image needs while it is made, a generous round figure: the VAE's decoder needs the most of it."""
_MOST = 16


def automatic_batch_size(tokens: int, free_bytes: int | None) -> int:
    """Images of `tokens` tokens each (text included) for one batch.

    Args:
        tokens: of one image; at least 1.
        free_bytes: memory left on the GPU, None on a CPU.
    """
    full = full_batch_size(tokens, is_cpu=free_bytes is None)
    return full if free_bytes is None else max(1, min(full, free_bytes // (tokens * _BYTES_PER_TOKEN)))


def full_batch_size(tokens: int, is_cpu: bool) -> int:
    """Images of `tokens` tokens each from which on a larger batch is hardly faster by the image."""
    return max(1, min((_TOKENS_PER_CPU_BATCH if is_cpu else _TOKENS_PER_GPU_BATCH) // tokens, _MOST))


class BatchSizes:
    """The batch size of each shape on this device: a first choice, halved for good when memory ran out.

    Args:
        choose: the first choice for a shape.
        memory: what of a shape decides how much memory it takes: shapes alike in it have one size.
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
        """Note that a batch of `failed` did not fit; False when it cannot become smaller."""
        if failed <= 1:
            return False
        self._sizes[self._memory(shape)] = failed // 2
        return True


def next_batch(waiting: Sequence[T], shape: Callable[[T], Hashable], sizes: BatchSizes) -> list[int]:
    """Indices into `waiting` of the next batch: the first that is full, else the first item and what shares its shape.

    So nothing waits for ever for company: while no batch is full, the first item goes as soon as no more may wait.
    """
    groups = _by_shape(waiting, shape)
    full = (group[: sizes[kind]] for kind, group in groups.items() if len(group) >= sizes[kind])
    return next(full, next(iter(groups.values())))


def is_batch_full(waiting: Sequence[T], shape: Callable[[T], Hashable], sizes: BatchSizes) -> bool:
    """Whether some shape has enough items for a batch."""
    return any(len(group) >= sizes[kind] for kind, group in _by_shape(waiting, shape).items())


def _by_shape(waiting: Sequence[T], shape: Callable[[T], Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(waiting):
        groups.setdefault(shape(item), []).append(index)
    return groups
