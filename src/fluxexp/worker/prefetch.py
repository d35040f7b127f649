"""Reads and places samples ahead of the model, in the order of the tasks, on threads of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Self

from fluxexp.config.schema import RunConfig
from fluxexp.data import Dataset, Placed, place
from fluxexp.errors import SampleError
from fluxexp.records import Sample, Task

_THREADS = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task whose sample is read and brought to its working size."""

    task: Task
    sample: Sample
    placed: Placed

    @property
    def shape(self) -> tuple[object, ...]:
        """What the items of a batch have in common; guidance and seed may differ."""
        point = self.task.point
        return (self.placed.height, self.placed.width, point.scheduler, point.steps, point.strength)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A task whose sample could not be read."""

    task: Task
    error: SampleError


class Prefetcher:
    """Iterates over prepared tasks, reading up to `depth` samples ahead. A sample is read once for all its variants."""

    def __init__(self, dataset: Dataset, config: RunConfig, tasks: Iterable[Task], depth: int) -> None:
        self._dataset = dataset
        self._config = config
        self._tasks = iter(tasks)
        self._depth = depth
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")
        self._ahead: deque[tuple[Task, Future[tuple[Sample, Placed]]]] = deque()

    def __iter__(self) -> Iterator[Prepared | Unreadable]:
        self._read_ahead()
        while self._ahead:
            task, future = self._ahead.popleft()
            self._read_ahead()
            try:
                sample, placed = future.result()
            except SampleError as error:
                yield Unreadable(task, error)
            else:
                yield Prepared(task, sample, placed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> None:
        for task in islice(self._tasks, self._depth - len(self._ahead)):
            last = self._ahead[-1] if self._ahead else None
            future = last[1] if last and last[0].index == task.index else self._pool.submit(self._read, task.index)
            self._ahead.append((task, future))

    def _read(self, index: int) -> tuple[Sample, Placed]:
        try:
            return self._place(self._dataset.load(index))
        except SampleError:
            raise
        except Exception as error:  # whatever a sample holds, it costs itself and not the run
            raise SampleError(f"{self._dataset.key(index)}: {type(error).__name__}: {error}") from error

    def _place(self, sample: Sample) -> tuple[Sample, Placed]:
        sampling = self._config.sampling
        placed = place(
            sample,
            self._config.dataset.placement,
            sampling.height,
            sampling.width,
            sampling.max_pixels,
            self._config.model.resolution,
        )
        return sample, placed
