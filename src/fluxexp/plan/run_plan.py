"""The tasks of a run by number, which of them are still to be made, and the run's directory. Imports no torch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fluxexp.address import Address
from fluxexp.config import RunConfig, fingerprint, fingerprint_payload
from fluxexp.data import Dataset, open_dataset
from fluxexp.plan.task_results import TaskResults
from fluxexp.records import ControlUse, LoraUse, Point, SampleLora, Task, content_hash, task_key, task_seed
from fluxexp.storage.manifest_index import Flags, ManifestIndex, Rows
from fluxexp.storage.run_directory import RunDirectory, run_directory
from fluxexp.storage.stored_records import StoredRecords
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
    def read(cls, directory: RunDirectory, datasets: dict[str, Dataset] | None = None) -> Plan:
        """The plan of the run in `directory`, from the config with which it was last started.

        A run of another version of fluxexp has a plan, too. Its fingerprint is the one in the run's directory.

        Args:
            directory: of the run.
            datasets: the datasets that are open, by their configs, so that the runs of a sweep share one. A new one is
                added to it.

        Raises:
            StorageError: it is not the directory of a run, or this version cannot use its config.
            ConfigError: its dataset is missing.
        """
        config, digest = directory.reader.config(), directory.reader.fingerprint()
        for note in directory.reader.notes:
            say(f"fluxexp: {directory.address}: {note}", urgent=True)
        patient = RunDirectory(directory.address, config.output.retry_s)  # its scores may be written
        known = {} if datasets is None else datasets
        if (key := repr(config.dataset)) not in known:
            known[key] = open_dataset(config.dataset)
        return cls(config, known[key], _point(config), digest, patient)

    @property
    def num_tasks(self) -> int:
        """Number of images that the config asks for."""
        return len(self.dataset) * self.config.sampling.images_per_sample

    def results(self) -> TaskResults:
        """What the manifest and the images say of each task. Says on the terminal what of the manifest is damaged.

        An attempt with another image or mask than the sample has now does not count. The content of a sample is not
        compared if it is not known: an older fluxexp did not write it into its records.
        """
        reader = self.directory.reader
        index, made = reader.manifest(), reader.made()
        if index.damage.has_news():
            say(f"fluxexp: {self.directory.address}: {index.damage.sentence()}", urgent=True)
        rows = self._rows(index)
        is_known = (rows >= 0) & ~self._outdated(rows, index.sparse.inputs)
        is_made, is_failed = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        is_made[is_known] = made[rows[is_known]]
        is_failed[is_known] = index.column("is_ok")[rows[is_known]] == 0
        return TaskResults(index, rows, is_made, is_failed)

    def finished(self) -> StoredRecords:
        """Records of the tasks whose image exists and is up to date, by key, in the order of the tasks."""
        return self.results().finished()

    def _rows(self, index: ManifestIndex) -> Rows:
        """The row of each task in `index`, or -1. Looks up only tasks that no earlier call has found."""
        key = (self.fingerprint, self.num_tasks, self.config.sampling.images_per_sample, self.dataset)
        rows = index.rows_of_tasks.setdefault(key, np.full(self.num_tasks, -1, dtype=np.int32))
        row_of = index.row_of
        if row_of:
            missing = np.flatnonzero(rows < 0)
            rows[missing] = [row_of.get(key, -1) for key in self._task_keys(missing.tolist())]
        return rows

    def _outdated(self, rows: Rows, inputs: Mapping[int, str]) -> Flags:
        """Which of the tasks have another image or mask than at the attempt in their row."""
        flags = np.zeros(len(rows), dtype=np.bool_)
        if not inputs:
            return flags
        content: str | None = None
        last = -1
        for number in np.flatnonzero(rows >= 0).tolist():
            known = inputs.get(int(rows[number]))
            if known is None:
                continue
            index = self.sample_index(number)
            if index != last:
                content, last = self.dataset.known_inputs(index), index
            flags[number] = content not in (None, known)
        return flags

    def scored_content(self, index: int) -> str:
        """Short hash of all files of a sample that scores depend on; empty if it has no files that can be read."""
        files = [self.dataset.known_inputs(index), self.dataset.truth(index)]
        return content_hash(files) if any(files) else ""

    @property
    def fingerprint_payload(self) -> Mapping[str, Any]:
        """The values whose hash is `fingerprint`."""
        return fingerprint_payload(self.config)

    def sample_index(self, number: int) -> int:
        """Index of task `number`'s sample in the dataset."""
        return number // self.config.sampling.images_per_sample

    def task_key(self, number: int) -> str:
        """Key of task `number`."""
        index, image_index = divmod(number, self.config.sampling.images_per_sample)
        return task_key(self.fingerprint, self.dataset.key(index), image_index, self.dataset.identity(index))

    def _task_keys(self, numbers: Iterable[int]) -> Iterator[str]:
        """Yield the keys of many tasks, faster than `task_key`."""
        fingerprint, per_sample = self.fingerprint, self.config.sampling.images_per_sample
        key, identity = self.dataset.key, self.dataset.identity
        for number in numbers:
            index = number // per_sample
            yield task_key(fingerprint, key(index), number % per_sample, identity(index))

    def task(self, number: int) -> Task:
        """Task `number`."""
        index, image_index = divmod(number, self.config.sampling.images_per_sample)
        sample_key = self.dataset.key(index)
        return Task(
            key=self.task_key(number),
            sample_key=sample_key,
            index=index,
            image_index=image_index,
            seed=task_seed(self.point.seed, sample_key, image_index),
            point=self.point_of(index),
        )

    def point_of(self, index: int) -> Point:
        """The point of a sample: that of the run, with the guidance, scale and LoRAs that the dataset asks for."""
        dataset, point = self.dataset, self.point
        guidance, scale, lora = dataset.guidance(index), dataset.true_cfg_scale(index), dataset.lora(index)
        if guidance is not None:
            point = replace(point, guidance=guidance)
        if scale is not None:
            point = replace(point, true_cfg_scale=scale)
        return point if lora is None else replace(point, lora=self._uses(lora))

    def _uses(self, own: SampleLora) -> tuple[LoraUse, ...]:
        """The LoRAs of a sample. What the sample leaves open comes from the config."""
        if own.path is None:
            assert own.scale is not None
            return tuple(LoraUse(use.path, own.scale) for use in self.point.lora)
        scale = self.config.lora.scale
        usual = scale if isinstance(scale, float) else 1.0
        return (LoraUse(own.path, usual if own.scale is None else own.scale),)

    @property
    def makes_second_passes(self) -> bool:
        """Whether a task has a second pass."""
        return self.point.makes_second_pass or self.dataset.sampling_columns.num_second_passes > 0

    @property
    def mixes_passes(self) -> bool:
        """Whether tasks may differ in their number of passes, and so in their cost."""
        return self.dataset.sampling_columns.num_scales > 0

    @property
    def uses_loras(self) -> bool:
        """Whether a task may have a LoRA."""
        return bool(self.point.lora) or self.dataset.has_loras

    def tasks(self, numbers: Iterable[int]) -> Iterator[Task]:
        """The tasks with these numbers, created one at a time."""
        return (self.task(number) for number in numbers)

    def pending(self) -> array[int]:
        """Numbers of the tasks without an up-to-date image. A failed task is pending: fluxexp tries it again."""
        return self.results().pending()

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
        true_cfg_scale=sampling.true_cfg_scale,
        negative_prompt=sampling.negative_prompt,
        prompt_2=sampling.prompt_2,
        lora=config.lora.uses,
        redux=config.redux.use,
        ip_adapter=config.ip_adapter.use,
        control=ControlUse(
            scale=sampling.controlnet_scale,
            start=sampling.control_guidance_start,
            end=sampling.control_guidance_end,
            mode=sampling.control_mode,
        ),
    )
