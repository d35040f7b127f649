"""The tasks of a run by number, which of them are still to be made, and the run's directory. Imports no torch."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fluxexp.address import Address
from fluxexp.config import RunConfig, fingerprint, fingerprint_payload
from fluxexp.data import Dataset, open_dataset
from fluxexp.records import Point, Record, Task, content_hash, task_key, task_seed
from fluxexp.storage.run_directory import RunDirectory, run_directory
from fluxexp.telemetry import say

_DIGEST_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of one run, numbered 0 to `num_tasks` - 1, in the order of samples, then of image indices.

    A plan creates a task only when a caller asks for it, so its memory does not grow with the number of tasks.
    """

    config: RunConfig
    dataset: Dataset
    point: Point
    fingerprint: str
    directory: RunDirectory

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset, root: Address) -> Plan:
        """The plan of `config`. `root` contains the run's directory if `output.dir` is null."""
        digest = fingerprint(config)
        return cls(config, dataset, _point(config), digest, run_directory(config.name, digest, config.output, root))

    @classmethod
    def read(cls, directory: RunDirectory) -> Plan:
        """The plan of the run in `directory`, from the config with which it was last started.

        A run of another version of fluxexp has a plan, too. Its fingerprint is the one in the run's directory.

        Raises:
            StorageError: it is not the directory of a run, or this version cannot use its config.
            ConfigError: its dataset is missing.
        """
        config, digest = directory.reader.config(), directory.reader.fingerprint()
        for note in directory.reader.notes:
            say(f"fluxexp: {directory.address}: {note}", urgent=True)
        patient = RunDirectory(directory.address, config.output.retry_s)  # its scores may be written
        return cls(config, open_dataset(config.dataset), _point(config), digest, patient)

    @property
    def num_tasks(self) -> int:
        """Number of images that the config asks for."""
        return len(self.dataset) * self.config.sampling.images_per_sample

    def finished(self) -> dict[str, Record]:
        """Records of the tasks whose image exists and is up to date, by key, in the order of the tasks."""
        outcomes = self.directory.reader.outcomes()
        found = (self.result(task, outcomes) for task in self.tasks(range(self.num_tasks)))
        return {record.key: record for record in found if record is not None and record.status == "ok"}

    def result(self, task: Task, outcomes: Mapping[str, Record]) -> Record | None:
        """The record of `task` in `outcomes`; None if there is none, or if the image or the mask changed since then.

        The content of a sample is not compared if it is not known: an older fluxexp did not write it into its records.
        """
        record = outcomes.get(task.key)
        if record is None or record.inputs is None:
            return record
        return record if self.dataset.inputs(task.index) in (None, record.inputs) else None

    def scored_content(self, index: int) -> str:
        """Short hash of all files of a sample that scores depend on; empty if it has no files that can be read."""
        files = [self.dataset.inputs(index), self.dataset.truth(index)]
        return content_hash(files) if any(files) else ""

    @property
    def fingerprint_payload(self) -> Mapping[str, Any]:
        """The values whose hash is `fingerprint`."""
        return fingerprint_payload(self.config)

    def sample_index(self, number: int) -> int:
        """Index of task `number`'s sample in the dataset."""
        return number // self.config.sampling.images_per_sample

    def task(self, number: int) -> Task:
        """Task `number`."""
        index, image_index = divmod(number, self.config.sampling.images_per_sample)
        sample_key = self.dataset.key(index)
        guidance = self.dataset.guidance(index)
        return Task(
            key=task_key(self.fingerprint, sample_key, image_index, self.dataset.identity(index)),
            sample_key=sample_key,
            index=index,
            image_index=image_index,
            seed=task_seed(self.point.seed, sample_key, image_index),
            point=self.point if guidance is None else replace(self.point, guidance=guidance),
        )

    def tasks(self, numbers: Iterable[int]) -> Iterator[Task]:
        """The tasks with these numbers, created one at a time."""
        return (self.task(number) for number in numbers)

    def pending(self, outcomes: Mapping[str, Record]) -> list[int]:
        """Numbers of the tasks without an up-to-date image. A failed task is pending: fluxexp tries it again."""
        if not any(record.status == "ok" for record in outcomes.values()):
            return list(range(self.num_tasks))
        return [
            number
            for number in range(self.num_tasks)
            if (record := self.result(self.task(number), outcomes)) is None or record.status != "ok"
        ]

    def digest(self) -> str:
        """Short hash of the dataset's length and of a thousand evenly spaced keys. Ranks compare it."""
        length = len(self.dataset)
        step = max(1, length // _DIGEST_KEYS)
        return content_hash([length, *(self.dataset.key(index) for index in range(0, length, step))])


def _point(config: RunConfig) -> Point:
    sampling = config.sampling
    return Point(
        scheduler=config.scheduler.name,
        shift=config.scheduler.shift,
        steps=sampling.steps,
        guidance=sampling.guidance,
        seed=sampling.seed,
        strength=sampling.strength,
        height=sampling.height,
        width=sampling.width,
        max_sequence_length=sampling.max_sequence_length,
    )


def pack_numbers(numbers: list[int], total: int) -> str:
    """A sorted list of numbers below `total` as compressed text. A million numbers take a few kilobytes."""
    bits = bytearray((total + 7) // 8)
    for number in numbers:
        bits[number >> 3] |= 1 << (number & 7)
    return base64.b85encode(zlib.compress(bytes(bits))).decode()


def unpack_numbers(text: str) -> list[int]:
    """Inverse of `pack_numbers`."""
    bits = zlib.decompress(base64.b85decode(text))
    return [(index << 3) + bit for index, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
