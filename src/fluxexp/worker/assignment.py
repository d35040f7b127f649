"""Tasks for a worker, each with the run that it belongs to."""

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
    """What a worker needs to know of one run."""

    number: int
    """Index of the run in the session plan."""
    config: RunConfig
    dataset: Dataset
    directory: RunDirectory
    attempts: Mapping[int, int]
    """Number of earlier attempts, by task number, as in the session plan."""
    is_alone: bool
    """Whether the run is not part of a sweep, so that event spans do not name their run."""

    def earlier_attempts(self, task: Task) -> int:
        """Number of earlier attempts at `task`."""
        return self.attempts.get(task.index * self.config.sampling.images_per_sample + task.image_index, 0)

    @cached_property
    def source(self) -> str:
        """Hash of the dataset config. Runs with equal hashes share samples that were read and conditioned."""
        return content_hash([dataset_payload(self.config.dataset), self.config.model.resolution])

    @cached_property
    def working_size(self) -> Hashable:
        """All settings that determine the working size of a sample."""
        sampling = self.config.sampling
        return (sampling.height, sampling.width, sampling.max_pixels)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task, and the run it belongs to."""

    order: WorkOrder
    task: Task


class Queue(Protocol):
    """A source of tasks for a worker."""

    @property
    def orders(self) -> Sequence[WorkOrder]:
        """The runs that its tasks belong to."""
        ...

    def upcoming(self, number: int) -> Sequence[Assignment]:
        """Tasks that probably come next, for prefetch."""
        ...

    def take(self, wanted: int) -> Sequence[Assignment]:
        """Take up to `wanted` tasks, which no other rank makes; empty if there are no more."""
        ...

    def report(self, seconds: float, made: Sequence[Assignment]) -> None:
        """Report the seconds that some tasks took."""
        ...


def by_run(assignments: Sequence[Any]) -> dict[int, int] | None:
    """Number of `assignments` (or other items with an `order`) of each run, by its number; None outside of a sweep."""
    if assignments[0].order.is_alone:
        return None
    counts: dict[int, int] = {}
    for assignment in assignments:
        counts[assignment.order.number] = counts.get(assignment.order.number, 0) + 1
    return counts
