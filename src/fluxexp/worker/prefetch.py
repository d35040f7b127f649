"""Prefetch: threads read samples and bring them to their working size. A sample is read once for all its tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from fluxexp.data import Placed, place_for
from fluxexp.errors import SampleError
from fluxexp.models.base import Prompt
from fluxexp.passing_trouble import read_patiently
from fluxexp.records import Sample, Task
from fluxexp.storage.image_files import require_encodable
from fluxexp.worker.assignment import Assignment, WorkOrder
from fluxexp.worker.prompts import negative_prompt_of, prompt_of, require_negative_prompt
from fluxexp.worker.sample_bytes import estimated_bytes, sample_bytes

_THREADS = 2
CAPACITY_BYTES = 512 << 20
"""Memory of the decoded samples that a rank keeps: ten photos of 12 megapixels, or at usual sizes all it asks for."""


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A task with its sample, at the working size."""

    order: WorkOrder
    task: Task
    sample: Sample
    placed: Placed
    inputs: str | None = None
    """Hash of the content of the sample's files, taken before they were read."""

    @property
    def prompt(self) -> Prompt:
        """The prompt of both text encoders, or one for each."""
        return prompt_of(self.sample, self.task.point)

    @property
    def negative_prompt(self) -> str | None:
        """The prompt of the second pass; None if there is no second pass."""
        return negative_prompt_of(self.sample, self.task.point)

    @property
    def shape(self) -> tuple[object, ...]:
        """What all items of a batch must share, besides the length of their texts (`BatchMaker.shape`).

        Run, guidance, seed and prompts may differ, and scales of true CFG.

        Images with and without a second pass never share a batch: each of them would have the time of the others. The
        same is true of the steps at which a ControlNet is computed.
        """
        point = self.task.point
        return (
            self.placed.height,
            self.placed.width,
            point.scheduler,
            point.shift,
            point.steps,
            point.strength,
            () if self.order.config.lora.mixing else point.lora,
            point.makes_second_pass,
            point.control.span,
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


@dataclass(slots=True)
class _Entry:
    """A sample that is read or was read."""

    reading: Future[_Read]
    estimated: int
    """Bytes that it was expected to need."""
    measured: int | None = None

    def num_bytes(self) -> int:
        """Bytes of the decoded sample; the estimate until it is read."""
        if self.measured is None and self.reading.done() and not self.reading.cancelled():
            result = self.reading.result().result
            self.measured = 0 if isinstance(result, SampleError) else sample_bytes(*result)
        return self.estimated if self.measured is None else self.measured


class Prefetcher:
    """Reads samples by task, and keeps the most recently used.

    Args:
        capacity: number of samples to keep.
        capacity_bytes: memory of decoded samples to keep. `read_ahead` stops when they need more. `get` always reads.
        on_begin: called with tasks before their samples are read, if they are not read yet.
    """

    def __init__(
        self,
        capacity: int,
        capacity_bytes: int = CAPACITY_BYTES,
        *,
        on_begin: Callable[[Sequence[Assignment]], None] = lambda begun: None,
    ) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._on_begin = on_begin
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def read_ahead(self, assignments: Iterable[Assignment]) -> int:
        """Start to read the samples that are not read yet, in this order, as far as there is memory for them.

        Returns:
            number of the tasks, from the first on, whose samples are read or will be read.
        """
        assignments = list(assignments)
        wanted = {_key(assignment) for assignment in assignments}
        unread: dict[Hashable, tuple[Assignment, int]] = {}
        number, unread_bytes = 0, 0
        for assignment in assignments:
            key = _key(assignment)
            if key in self._entries:
                self._entries.move_to_end(key)
            elif key not in unread:
                estimated = estimated_bytes(assignment)
                self._make_room(unread_bytes + estimated, wanted, len(unread) + 1)
                is_first = not self._entries and not unread
                if not is_first and self.held_bytes() + unread_bytes + estimated > self._capacity_bytes:
                    break
                unread[key] = assignment, estimated
                unread_bytes += estimated
            number += 1
        self._start(list(unread.values()))
        return number

    def held_bytes(self) -> int:
        """Memory of the samples that are kept. Of those that are not read yet, an estimate."""
        return sum(entry.num_bytes() for entry in self._entries.values())

    def get(self, assignment: Assignment) -> PreparedSample | UnreadableSample:
        """The sample of a task. Waits until it is read."""
        order, task = assignment.order, assignment.task
        key = _key(assignment)
        if key not in self._entries:
            estimated = estimated_bytes(assignment)
            self._make_room(estimated, {key}, 1)
            self._start([(assignment, estimated)])
        self._entries.move_to_end(key)
        read = self._entries[key].reading.result()
        if isinstance(read.result, SampleError):
            return UnreadableSample(order, task, read.result, read.inputs)
        sample, placed = read.result
        output = order.config.output
        try:  # not in the thread, because runs of different formats and scales share what it has read
            require_negative_prompt(sample, task.point)
            require_encodable(_result_size(sample, placed, output.paste), output.format)
        except SampleError as error:
            return UnreadableSample(order, task, error, read.inputs)
        return PreparedSample(order, task, sample, placed, read.inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, unread: Sequence[tuple[Assignment, int]]) -> None:
        """Start to read samples that are not read yet, each with its estimated bytes."""
        if unread:
            self._on_begin([assignment for assignment, _ in unread])
        for assignment, estimated in unread:
            reading = self._pool.submit(_read, assignment.order, assignment.task.index)
            self._entries[_key(assignment)] = _Entry(reading, estimated)

    def _make_room(self, needed: int, wanted: Collection[Hashable], number: int) -> None:
        """Drop the least recently used samples, except `wanted` ones, until `number` of together `needed` bytes fit."""
        held = self.held_bytes()
        for key in [key for key in self._entries if key not in wanted]:
            if len(self._entries) + number <= self._capacity and held + needed <= self._capacity_bytes:
                return
            entry = self._entries.pop(key)
            entry.reading.cancel()
            held -= entry.num_bytes()


def _key(assignment: Assignment) -> Hashable:
    """Equal for tasks that share a sample at its working size."""
    order = assignment.order
    return order.source, order.working_size, assignment.task.index


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
