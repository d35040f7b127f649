"""The images that two runs share: the same sample and the same noise. And what one of the two does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fluxexp.address import Address
from fluxexp.compare.run_view import PairKey, RunView
from fluxexp.errors import ComparisonError, StorageError
from fluxexp.plan import Plan
from fluxexp.records import Task
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory

_NUM_NAMED = 3
"""Maximum number of samples that an error names."""


class TaskPair(NamedTuple):
    """One sample and one noise: the tasks of both runs."""

    key: PairKey
    candidate: Task
    reference: Task


@dataclass(frozen=True, slots=True)
class MissingImages:
    """Numbers of images that only one of the two runs has."""

    failed: Sequence[str]
    """Sample keys of the images that the candidate failed to make, and that the reference made."""
    pending: int
    """Images that the reference has, and that the candidate has still to make."""
    only_reference: int
    """Images of the reference without an image of the candidate. Includes `failed` and `pending`."""
    only_candidate: int
    """Images of the candidate without an image of the reference."""


@dataclass(frozen=True, slots=True)
class RunPairs:
    """Two runs, and the images that both have."""

    candidate: RunView
    reference: RunView
    pairs: Sequence[TaskPair]
    """At least one."""
    missing: MissingImages

    @property
    def num_samples(self) -> int:
        """Number of samples with at least one pair."""
        return len({pair.key[0] for pair in self.pairs})


def read_pairs(candidate: Address, reference: Address) -> RunPairs:
    """Read both runs, and pair their images.

    Raises:
        ComparisonError: the runs have no images of the same sample and noise, or a sample is not the same in both.
        StorageError: one of them is not a run, or is damaged.
        ConfigError: the dataset of one of them is missing.
    """
    ours, theirs = (RunView.read(Plan.read(_run_at(address))) for address in (candidate, reference))
    made, expected = _made(ours), _made(theirs)
    pairs = [TaskPair(key, task, expected[key]) for key, task in made.items() if key in expected]
    if not pairs:
        raise ComparisonError(_why_no_pairs(ours, theirs, made, expected))
    _require_equal_samples(ours, theirs, pairs)
    return RunPairs(ours, theirs, pairs, _missing(ours, made, expected))


def _run_at(address: Address) -> RunDirectory:
    """The run at `address`.

    Raises:
        StorageError: it is a sweep, or no run at all.
    """
    run = RunDirectory(address)
    if run.reader.is_run():
        return run
    sweep = SweepDirectory(address)
    if (values := sweep.reader.lenient().values()) is None:
        raise StorageError(f"{address} is not the directory of a run. Give a directory that has a config.yaml")
    points = [str(point.address) for point in map(sweep.run_of, values["points"]) if point]
    raise StorageError(f"{address} is a sweep. Give the directory of one of its points:\n  " + "\n  ".join(points))


def _made(run: RunView) -> dict[PairKey, Task]:
    return _by_pair(run, run.results.is_made)


def _by_pair(run: RunView, flags: np.ndarray) -> dict[PairKey, Task]:
    tasks = run.plan.tasks(np.flatnonzero(flags).tolist())
    return {(task.sample_key, task.image_index, task.seed): task for task in tasks}


def _missing(run: RunView, made: Mapping[PairKey, Task], reference: Mapping[PairKey, Task]) -> MissingImages:
    absent = [key for key in reference if key not in made]
    failed = _by_pair(run, run.results.is_failed & ~run.results.is_made) if absent else {}
    planned = _by_pair(run, ~run.results.is_made) if absent else {}
    return MissingImages(
        failed=[key[0] for key in absent if key in failed],
        pending=sum(key in planned and key not in failed for key in absent),
        only_reference=len(absent),
        only_candidate=sum(key not in reference for key in made),
    )


def _why_no_pairs(
    candidate: RunView, reference: RunView, made: Mapping[PairKey, Task], expected: Mapping[PairKey, Task]
) -> str:
    for run, tasks in ((candidate, made), (reference, expected)):
        if not tasks:
            return f"{run.plan.directory.address} has no images. Run its command again"
    keys, others = {key for key, _, _ in made}, {key for key, _, _ in expected}
    names = f"{candidate.plan.directory.address} and {reference.plan.directory.address}"
    if not keys & others:
        return (
            f"{names} have no sample in common: {_some(keys)} and {_some(others)}. "
            "Make both runs with the same dataset settings"
        )
    seeds = candidate.config.sampling.seed, reference.config.sampling.seed
    return (
        f"{names} have the same samples with different noise (sampling.seed={seeds[0]} and {seeds[1]}), "
        "so that their images cannot be paired. Make both runs with the same sampling.seed"
    )


def _require_equal_samples(candidate: RunView, reference: RunView, pairs: Sequence[TaskPair]) -> None:
    """Raises ComparisonError if samples of equal keys have other prompts or files."""
    ours, theirs = candidate.plan, reference.plan
    if repr(ours.config.dataset) == repr(theirs.config.dataset):
        return
    known = [
        (pair.key[0], first, second)
        for pair in pairs
        for first, second in (
            (ours.dataset.identity(pair.candidate.index), theirs.dataset.identity(pair.reference.index)),
            (ours.scored_content(pair.candidate.index), theirs.scored_content(pair.reference.index)),
        )
        if first and second
    ]
    if different := {key for key, first, second in known if first != second}:
        raise ComparisonError(
            f"{len(different)} samples have the same key and another prompt or other files in the two runs: "
            f"{_some(different)}. Make both runs with the same dataset"
        )


def _some(keys: set[str]) -> str:
    first = sorted(keys)[:_NUM_NAMED]
    return ", ".join(first) + (", ..." if len(keys) > len(first) else "")
