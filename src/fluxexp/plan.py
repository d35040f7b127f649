"""What a run has to do: its tasks by number, those still to be made, and the directory they go to. Imports no torch."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fluxexp.config import RunConfig, build, fingerprint, fingerprint_payload
from fluxexp.data import Dataset, open_dataset
from fluxexp.errors import ConfigError, StorageError
from fluxexp.records import Point, Record, Task, content_hash, task_key, task_seed
from fluxexp.storage.run_directory import RunDirectory

_DIGEST_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of one run, numbered 0 to `num_tasks` - 1: sample by sample, the variants of each together.

    Tasks are made when they are asked for: a plan of a million costs no more memory than one of ten.
    """

    config: RunConfig
    dataset: Dataset
    point: Point
    fingerprint: str
    directory: RunDirectory

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset, root: Path) -> Plan:
        """The plan of `config`; `root` holds run directories where the config names no other place."""
        digest = fingerprint(config)
        parent = Path(config.output.dir).expanduser() if config.output.dir else root
        return cls(config, dataset, _point(config), digest, RunDirectory(parent / f"{config.name}-{digest}"))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan of the run that lies in directory `path`, by the config it was last begun with.

        Raises:
            StorageError: it is not the directory of a run, or its config is another version's.
            ConfigError: its dataset is not there any more.
        """
        directory = RunDirectory(path)
        try:
            config = build(RunConfig, yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
            digest = content_hash(json.loads(directory.fingerprint.read_text(encoding="utf-8")))
        except OSError as error:
            raise StorageError(f"{path} is not the directory of a run: {error}") from error
        except (ValueError, yaml.YAMLError, ConfigError) as error:
            raise StorageError(f"{path}: config.yaml or fingerprint.json cannot be read: {error}") from error
        return cls(config, open_dataset(config.dataset), _point(config), digest, directory)

    @property
    def num_tasks(self) -> int:
        """Images asked for."""
        return len(self.dataset) * self.config.sampling.images_per_sample

    def finished(self) -> dict[str, Record]:
        """Records of the tasks that have their image, by key, in the order of the tasks."""
        outcomes = self.directory.outcomes()
        found = ((task.key, outcomes.get(task.key)) for task in self.tasks(range(self.num_tasks)))
        return {key: record for key, record in found if record is not None and record.status == "ok"}

    @property
    def fingerprint_payload(self) -> Mapping[str, Any]:
        """What `fingerprint` is a hash of."""
        return fingerprint_payload(self.config)

    def sample_index(self, number: int) -> int:
        """Index of task `number`'s sample in the dataset."""
        return number // self.config.sampling.images_per_sample

    def task(self, number: int) -> Task:
        """Task `number`."""
        index, variant = divmod(number, self.config.sampling.images_per_sample)
        sample_key = self.dataset.key(index)
        return Task(
            key=task_key(self.fingerprint, sample_key, variant, self.dataset.identity(index)),
            sample_key=sample_key,
            index=index,
            variant=variant,
            seed=task_seed(self.point.seed, sample_key, variant),
            point=self.point,
        )

    def tasks(self, numbers: Iterable[int]) -> Iterator[Task]:
        """Tasks by number, made one at a time."""
        return (self.task(number) for number in numbers)

    def pending(self, outcomes: Mapping[str, Record]) -> list[int]:
        """Numbers of the tasks that have no image yet; a failed task is tried again."""
        if not any(record.status == "ok" for record in outcomes.values()):
            return list(range(self.num_tasks))
        return [
            number
            for number in range(self.num_tasks)
            if (record := outcomes.get(self.task(number).key)) is None or record.status != "ok"
        ]

    def digest(self) -> str:
        """Short hash over the dataset's length and keys (a thousand of them, evenly spread): ranks compare it."""
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
    """A sorted list of numbers below `total` as compressed text: a million tasks take a few kilobytes."""
    bits = bytearray((total + 7) // 8)
    for number in numbers:
        bits[number >> 3] |= 1 << (number & 7)
    return base64.b85encode(zlib.compress(bytes(bits))).decode()


def unpack_numbers(text: str) -> list[int]:
    """Inverse of `pack_numbers`."""
    bits = zlib.decompress(base64.b85decode(text))
    return [(index << 3) + bit for index, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
