"""What is exported: the results of some runs, one row for each image, read while they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.run_reader import RunReader
from fluxexp.storage.scores import ScoreValues
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.terminal import say

Part = Literal["images", "prompts", "settings", "scores"]
PARTS: Sequence[Part] = get_args(Part)


@dataclass(frozen=True, slots=True)
class ExportedRow:
    """One result."""

    record: Record
    values: Mapping[str, Any]
    """By column name, without the image. Strings, integers and floats; None where there is no value."""
    image: bytes | None
    """The image file; None if images are not exported, or if the task failed."""

    @property
    def suffix(self) -> str:
        """Extension of the image file without a dot, for example `png`."""
        return (self.record.file or "").rpartition(".")[2]


class ExportedRun:
    """The results of one run.

    Raises:
        StorageError: `directory` is not the directory of a run, or it cannot be read.
    """

    def __init__(self, directory: RunDirectory, parts: Sequence[Part]) -> None:
        self.name = directory.name
        self._parts = parts
        self._reader: RunReader = directory.reader.lenient()
        if not self._reader.is_run():
            raise StorageError(f"{directory.address} is not the directory of a run or a sweep: it has no config.yaml")
        config = self._reader.config_values()
        self._settings = {
            "model": _name_of(config.get("model")),
            "scheduler": _name_of(config.get("scheduler")),
            "overrides": " ".join(self._reader.overrides()),
        }
        self._scores: ScoreValues = self._reader.scores() if "scores" in parts else {}
        for note in self._reader.notes:
            say(f"fluxexp: {directory.address}: {note}", urgent=True)

    def metrics(self) -> set[str]:
        """Names of the metrics that the images have."""
        return {name for scores in self._scores.values() for name in scores}

    def rows(self, *, with_failed: bool) -> Iterator[ExportedRow]:
        """Yield the images that exist, and the failed tasks if `with_failed`. One image is in memory at a time.

        Raises:
            StorageError: an image or the manifest cannot be read, or was removed meanwhile.
        """
        for record in self._reader.outcomes().stream():
            if record.status == "ok" or with_failed:
                yield ExportedRow(record, self._values(record), self._image(record))

    def _image(self, record: Record) -> bytes | None:
        if record.file is None or "images" not in self._parts:
            return None
        try:
            return self._reader.read_image(record.file)
        except OSError as error:
            raise StorageError(f"{self._reader.store.address}/{record.file} cannot be read: {error}") from error

    def _values(self, record: Record) -> dict[str, Any]:
        values: dict[str, Any] = {
            "key": record.key,
            "run": self.name,
            "sample_key": record.sample_key,
            "image_index": record.variant,
        }
        if "prompts" in self._parts:
            values |= {name: getattr(record, name) for name in ("prompt", "prompt_2", "negative_prompt")}
        if "settings" in self._parts:
            names = ("seed", "steps", "guidance", "true_cfg_scale", "height", "width")
            values |= {name: getattr(record, name) for name in names} | self._settings
        values |= {score_column(name): value for name, value in self._scores.get(record.key, {}).items()}
        return values


class ExportedRows:
    """The results of several runs, in the order of the runs."""

    def __init__(self, runs: Sequence[ExportedRun], parts: Sequence[Part]) -> None:
        self.runs = runs
        self.parts = parts
        self.metrics = sorted(set().union(*(run.metrics() for run in runs)))

    @classmethod
    def read(cls, addresses: Sequence[Address], parts: Sequence[Part]) -> ExportedRows:
        """The results at `addresses`: runs, and sweeps, of which all points are exported.

        Raises:
            StorageError: one of them is not a run or a sweep, or a run is there twice.
        """
        directories = [directory for address in addresses for directory in _runs_at(address)]
        for number, directory in enumerate(directories):
            if directory in directories[:number]:
                raise StorageError(f"{directory.address} would be exported twice: name it once")
        return cls([ExportedRun(directory, parts) for directory in directories], parts)

    def rows(self, *, with_failed: bool = False) -> Iterator[ExportedRow]:
        """See `ExportedRun.rows`."""
        for run in self.runs:
            yield from run.rows(with_failed=with_failed)


def score_column(metric: str) -> str:
    """Name of the column with the scores of `metric`."""
    return f"score_{metric}"


def _runs_at(address: Address) -> list[RunDirectory]:
    sweep = SweepDirectory(address)
    values = sweep.reader.lenient().values()
    if values is None:
        return [RunDirectory(address)]
    return [run for point in values["points"] if (run := sweep.run_of(point))]


def _name_of(group: Any) -> str | None:
    name = group.get("name") if isinstance(group, Mapping) else None
    return name if isinstance(name, str) else None
