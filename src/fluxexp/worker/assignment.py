"""What a worker is given to do: tasks, each with the run that it belongs to."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from fluxexp.config import RunConfig, dataset_payload
from fluxexp.data import Dataset
from fluxexp.records import Task, content_hash
from fluxexp.storage.run_directory import RunDirectory


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkOrder:
    """One run, as far as a worker has to know it."""

    number: int
    """Of the run among those that share a model."""
    config: RunConfig
    dataset: Dataset
    directory: RunDirectory
    attempts: Mapping[str, int]
    """How often failed tasks were tried before, by task key."""
    is_alone: bool
    """Whether it is no part of a sweep: then spans need not say for which run they were."""

    @cached_property
    def source(self) -> str:
        """Names the dataset: runs whose datasets are alike share what was read and conditioned."""
        return content_hash([dataset_payload(self.config.dataset), self.config.model.resolution])

    @cached_property
    def working_size(self) -> Hashable:
        """All that a sample's working size depends on besides the sample."""
        sampling = self.config.sampling
        return (sampling.height, sampling.width, sampling.max_pixels)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task, and the run it belongs to."""

    order: WorkOrder
    task: Task


class Queue(Protocol):
    """Where a worker's tasks come from."""

    @property
    def num_runs(self) -> int:
        """Runs that its tasks belong to."""
        ...

    def upcoming(self, number: int) -> Sequence[Assignment]:
        """What is probably next, to be read ahead."""
        ...

    def take(self, wanted: int) -> Sequence[Assignment]:
        """Up to `wanted` tasks, which nobody else will make; none when there is no more to do."""
        ...

    def report(self, seconds: float, made: Sequence[Assignment]) -> None:
        """Say how long it took to make some tasks."""
        ...


def by_run(assignments: Sequence[Any]) -> dict[int, int] | None:
    """How many of `assignments`, or of other things that have an `order`, belong to each run, by its number.

    None where it is no sweep.
    """
    if assignments[0].order.is_alone:
        return None
    counts: dict[int, int] = {}
    for assignment in assignments:
        counts[assignment.order.number] = counts.get(assignment.order.number, 0) + 1
    return counts
