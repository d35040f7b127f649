"""Prefetch: threads read samples and bring them to their working size. A sample is read once for all its tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from fluxexp.data import Placed, place
from fluxexp.errors import SampleError
from fluxexp.records import Sample, Task
from fluxexp.worker.assignment import Assignment, WorkOrder

_THREADS = 2


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A task with its sample, at the working size."""

    order: WorkOrder
    task: Task
    sample: Sample
    placed: Placed

    @property
    def shape(self) -> tuple[object, ...]:
        """What all items of a batch must share. Run, guidance and seed may differ."""
        point = self.task.point
        return (
            self.placed.height,
            self.placed.width,
            point.scheduler,
            point.shift,
            point.steps,
            point.strength,
            point.max_sequence_length,
            self.order.config.sampling.batch_size,
        )


@dataclass(frozen=True, slots=True)
class UnreadableSample:
    """A task whose sample cannot be read, with the error."""

    order: WorkOrder
    task: Task
    error: SampleError


class Prefetcher:
    """Reads samples by task, and keeps the `capacity` most recently used."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")
        self._reading: OrderedDict[Hashable, Future[tuple[Sample, Placed]]] = OrderedDict()

    def read_ahead(self, assignments: Iterable[Assignment]) -> None:
        """Start to read the samples that are not read yet."""
        for assignment in assignments:
            self._start(assignment)

    def get(self, assignment: Assignment) -> PreparedSample | UnreadableSample:
        """The sample of a task. Waits until it is read."""
        order, task = assignment.order, assignment.task
        try:
            sample, placed = self._start(assignment).result()
        except SampleError as error:
            return UnreadableSample(order, task, error)
        return PreparedSample(order, task, sample, placed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, assignment: Assignment) -> Future[tuple[Sample, Placed]]:
        order, index = assignment.order, assignment.task.index
        key = (order.source, order.working_size, index)
        if key not in self._reading:
            self._reading[key] = self._pool.submit(_read, order, index)
        self._reading.move_to_end(key)
        while len(self._reading) > self._capacity:
            self._reading.popitem(last=False)
        return self._reading[key]


def _read(order: WorkOrder, index: int) -> tuple[Sample, Placed]:
    try:
        sample = order.dataset.load(index)
        sampling, config = order.config.sampling, order.config
        placed = place(
            sample,
            config.dataset.placement,
            sampling.height,
            sampling.width,
            sampling.max_pixels,
            config.model.resolution,
        )
    except SampleError:
        raise
    except Exception as error:  # any error of a sample fails its tasks, but not the run
        raise SampleError(f"{order.dataset.key(index)}: {type(error).__name__}: {error}") from error
    return sample, placed
