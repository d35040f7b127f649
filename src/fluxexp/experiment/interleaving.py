"""The order of a shard: batches of different points alternate, so that a device's changing speed is no cost of a point.

The points of a sweep share their devices. If the images of one point were made before those of another, a device that
slows down in between would make the second point look costly. So each cycle makes one batch of every kind of task.
Every second cycle runs in the opposite order: a speed that changes linearly then has the same mean for all kinds.

Another LoRA changes the weights of the model, which takes time. So each window makes all batches of one LoRA before
those of the next, and the next window begins with the LoRA that the window before it ended with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import zip_longest
from math import gcd

from fluxexp.experiment.task_kinds import Kind

WINDOW = 32
"""At most this many samples are made at the same time. A worker keeps them read and conditioned."""

KindOf = Callable[[int], Kind]
SampleOf = Callable[[int], Hashable]


def interleaved(shard: Sequence[int], kind_of: KindOf, sample_of: SampleOf) -> Sequence[int]:
    """The order of the tasks `shard`, which are sorted by sample.

    The last cycle begins with its costliest batch, so that cheap ones balance the load of the ranks at the end. If
    there is only one kind and each sample has one task, all tasks are sorted by cost, costly ones first.

    Args:
        shard: numbers of tasks.
        kind_of: the kind of a task.
        sample_of: the sample of a task. Tasks of a sample share what was read and conditioned for it.
    """
    num_kinds, num_samples = len({kind_of(task).name for task in shard}), len(set(map(sample_of, shard)))
    loras = list(dict.fromkeys(kind_of(task).lora for task in shard))
    if num_kinds == len(loras) and num_samples == len(shard):
        places = {lora: place for place, lora in enumerate(loras)}
        return sorted(shard, key=lambda task: (places[kind_of(task).lora], -kind_of(task).cost))
    largest = max((kind_of(task).batch_size for task in shard), default=1)
    per_sample = round(len(shard) / max(1, num_samples * num_kinds))
    cycles = [
        sorted((batch for batch in cycle if batch), key=lambda batch: -kind_of(batch[0]).cost)
        for of_one_lora in _by_lora(_windows(shard, sample_of, _window_length(largest, max(1, per_sample))), kind_of)
        for cycle in zip_longest(*_batches(of_one_lora, kind_of), fillvalue=())
    ]
    directions = ((len(cycles) - number) % 2 for number in range(len(cycles)))  # 1 for the last one: as sorted
    turned = (cycle if forward else reversed(cycle) for cycle, forward in zip(cycles, directions, strict=True))
    return [task for cycle in turned for batch in cycle for task in batch]


def _window_length(batch_size: int, per_sample: int) -> int:
    """The largest number of samples, at most `WINDOW`, of which each kind's tasks make full batches."""
    for_full = batch_size // gcd(batch_size, per_sample)
    return WINDOW // for_full * for_full or WINDOW


def _windows(shard: Sequence[int], sample_of: SampleOf, length: int) -> list[list[int]]:
    """Divide a shard into windows of at most `length` samples."""
    windows: list[list[int]] = []
    seen: set[Hashable] = set()
    for task in shard:
        if not windows or (sample_of(task) not in seen and len(seen) == length):
            windows.append([])
            seen = set()
        windows[-1].append(task)
        seen.add(sample_of(task))
    return windows


def _by_lora(windows: Sequence[Sequence[int]], kind_of: KindOf) -> list[list[int]]:
    """Divide each window into tasks of the same LoRAs. A window begins with the LoRAs of the end of the last one."""
    divided: list[list[int]] = []
    last: Hashable = None
    for window in windows:
        groups: dict[Hashable, list[int]] = {}
        for task in window:
            groups.setdefault(kind_of(task).lora, []).append(task)
        order = list(groups)
        if last in groups:
            order.remove(last)
            order.insert(0, last)
        divided += (groups[lora] for lora in order)
        last = order[-1]
    return divided


def _batches(window: Sequence[int], kind_of: KindOf) -> list[list[list[int]]]:
    """For each kind of the window, its batches, large images first. Only tasks of one size share a batch."""
    batches: dict[Hashable, list[list[int]]] = {}
    for task in sorted(window, key=lambda task: (-kind_of(task).cost, kind_of(task).size)):
        kind = kind_of(task)
        own = batches.setdefault(kind.name, [])
        if not own or len(own[-1]) == kind.batch_size or kind_of(own[-1][0]).size != kind.size:
            own.append([])
        own[-1].append(task)
    return list(batches.values())
