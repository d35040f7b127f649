"""Prefetch: threads read samples and bring them to their working size. A sample is read once for all its tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from fluxexp.data import Placed, place_for
from fluxexp.errors import SampleError
from fluxexp.passing_trouble import read_patiently
from fluxexp.records import Sample, Task
from fluxexp.storage.image_files import require_encodable
from fluxexp.worker.assignment import Assignment, WorkOrder

_THREADS = 2


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A task with its sample, at the working size."""

    order: WorkOrder
    task: Task
    sample: Sample
    placed: Placed
    inputs: str | None = None
    """Hash of the content of the sample's image and mask files, taken before they were read."""

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
    inputs: str | None = None
    """As in `PreparedSample`."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What a thread has read of a sample: the sample at its working size, or the error."""

    inputs: str | None
    result: tuple[Sample, Placed] | SampleError


class Prefetcher:
    """Reads samples by task, and keeps the `capacity` most recently used.

    `on_begin` is called with tasks before their samples are read, if they are not read yet.
    """

    def __init__(self, capacity: int, on_begin: Callable[[Sequence[Assignment]], None] = lambda begun: None) -> None:
        self._capacity = capacity
        self._on_begin = on_begin
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")
        self._reading: OrderedDict[Hashable, Future[_Read]] = OrderedDict()

    def read_ahead(self, assignments: Iterable[Assignment]) -> None:
        """Start to read the samples that are not read yet."""
        assignments = list(assignments)
        unread = [assignment for assignment in assignments if _place(assignment) not in self._reading]
        if unread:
            self._on_begin(unread)
        for assignment in assignments:
            self._start(assignment)

    def get(self, assignment: Assignment) -> PreparedSample | UnreadableSample:
        """The sample of a task. Waits until it is read."""
        order, task = assignment.order, assignment.task
        self.read_ahead([assignment])
        read = self._start(assignment).result()
        if isinstance(read.result, SampleError):
            return UnreadableSample(order, task, read.result, read.inputs)
        sample, placed = read.result
        output = order.config.output
        try:  # not in the thread, because runs of different formats share what it has read
            require_encodable(_result_size(sample, placed, output.paste), output.format)
        except SampleError as error:
            return UnreadableSample(order, task, error, read.inputs)
        return PreparedSample(order, task, sample, placed, read.inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, assignment: Assignment) -> Future[_Read]:
        key = _place(assignment)
        if key not in self._reading:
            self._reading[key] = self._pool.submit(_read, assignment.order, assignment.task.index)
        self._reading.move_to_end(key)
        while len(self._reading) > self._capacity:
            self._reading.popitem(last=False)
        return self._reading[key]


def _place(assignment: Assignment) -> Hashable:
    """Equal for tasks that share a sample at its working size."""
    return assignment.order.source, assignment.order.working_size, assignment.task.index


def _read(order: WorkOrder, index: int) -> _Read:
    """Read a sample. Its content is hashed first: if a file changes in between, the next session makes it again.

    A trouble of the storage that may pass is not an error of the sample yet: see `read_patiently`.
    """
    inputs: str | None = None

    def read() -> tuple[Sample, Placed]:
        nonlocal inputs
        inputs = order.dataset.inputs(index)
        return _load(order, index)

    try:
        loaded = read_patiently(read)
    except SampleError as error:
        return _Read(inputs, error)
    return _Read(inputs, loaded)


def _load(order: WorkOrder, index: int) -> tuple[Sample, Placed]:
    try:
        sample = order.dataset.load(index)
        placed = place_for(sample, order.config)
    except SampleError:
        raise
    except Exception as error:  # any error of a sample fails its tasks, but not the run
        raise SampleError(f"{order.dataset.key(index)}: {type(error).__name__}: {error}") from error
    return sample, placed


def _result_size(sample: Sample, placed: Placed, paste: bool) -> tuple[int, int]:
    """(width, height) of the file that will be written."""
    is_pasted = paste and sample.image is not None and sample.mask is not None
    return sample.image.size if is_pasted and sample.image is not None else (placed.width, placed.height)
