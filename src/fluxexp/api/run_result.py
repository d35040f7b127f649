"""`RunResult`: what a run has made, for Python code."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fluxexp.api.tables import records_frame
from fluxexp.errors import StorageError
from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.records import Record
from fluxexp.storage.result_files import REPORT
from fluxexp.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image


class RunResult:
    """The results of one run, as they are when they are first used. `fluxexp.load` again sees what was added since.

    Everything is read when it is asked for. Damaged files are left out, and `notes` says so.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._reader = directory.reader.lenient()

    def __repr__(self) -> str:
        made = sum(record.status == "ok" for record in self.records.values())
        return f"<RunResult {self.directory}: {self.status}, {made} images, {len(self.failed)} failed tasks>"

    @property
    def directory(self) -> str:
        """Path or address of the run."""
        return str(self._directory.address)

    @property
    def report(self) -> str:
        """Path or address of the HTML page about the run, which exists unless `report=off`."""
        return str(self._directory.address / REPORT)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The config by dotted key, for example `settings["sampling.steps"]`."""
        return dict(_flat(self._reader.config_values()))

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The content of summary.json (docs/run-directory.md). Empty if no session has ended yet."""
        return self._reader.summary() or {}

    @property
    def status(self) -> str:
        """`complete`, `complete_with_failures` or `incomplete`."""
        return str(self.summary.get("status", "incomplete"))

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """The result of each task that was tried, by task key. A task whose image is gone is left out.

        Records are read from the manifest when they are used.
        """
        return self._reader.outcomes()

    @cached_property
    def failed(self) -> Mapping[str, str]:
        """The errors of the tasks that failed, by task key."""
        records = self.records.values()
        return {record.key: record.error or "" for record in records if record.status == "failed"}

    @cached_property
    def scores(self) -> Mapping[str, Mapping[str, float | None]]:
        """Scores of the images, by task key and metric. None: the metric does not apply to the image, or failed."""
        return self._reader.scores()

    @cached_property
    def images(self) -> Mapping[str, Image]:
        """The images by task key. Each is read when it is used, and not kept."""
        return _Images(self)

    @property
    def notes(self) -> list[str]:
        """What is missing, damaged or unknown in the files that were read so far, in sentences."""
        return list(dict.fromkeys(self._reader.notes))

    def image(self, key: str) -> Image:
        """The image of a task, in its own mode (RGB, or RGBA for images with transparent pixels).

        Raises:
            KeyError: there is no such task, or it was not tried.
            StorageError: the task failed, or its file cannot be read.
        """
        import PIL.Image

        record = self.records[key]
        if record.file is None:
            raise StorageError(f"{key} has no image, because the task failed: {record.error}")
        try:
            picture = PIL.Image.open(io.BytesIO(self._reader.read_image(record.file)), formats=RESULT_FORMATS)
            picture.load()
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise StorageError(f"{self.directory}/{record.file} cannot be read: {error}") from error
        return picture

    def frame(self) -> pd.DataFrame:
        """One row for each task that was tried, with its key as index.

        Columns: `sample_key`, `image_index`, `status` (ok, failed), `error`, `prompt`, `negative_prompt`, `seed`,
        `steps`, `guidance`, `true_cfg_scale`, `height` and `width` (pixels), `seconds` (of all stages),
        `computed_steps`, `batch_size`, `rank`, `device`, `file` (in `directory`), and a column for each metric.

        Raises:
            ImportError: pandas is not installed.
        """
        return frame_of(self, {}, {})


def frame_of(
    run: RunResult, settings: Mapping[str, Any], distances: Mapping[str, Mapping[str, float | None]]
) -> pd.DataFrame:
    """The frame of `run`, with columns for `settings`, and with further scores by task key."""
    scores = {key: {**run.scores.get(key, {}), **distances.get(key, {})} for key in run.records}
    return records_frame(run.records.values(), scores, settings)


class _Images(Mapping[str, "Image"]):
    """The images of a run, read one at a time."""

    def __init__(self, run: RunResult) -> None:
        self._run = run
        self._keys = [record.key for record in run.records.values() if record.status == "ok"]
        self._known = frozenset(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Image:
        if key not in self._known:
            raise KeyError(key)
        return self._run.image(key)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
