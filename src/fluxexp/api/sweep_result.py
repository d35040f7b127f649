"""`SweepResult`: what a sweep has made, for Python code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fluxexp.api.run_result import RunResult, frame_of
from fluxexp.api.tables import require_pandas, rows_frame
from fluxexp.compare.points_table import points_table
from fluxexp.storage.result_files import REPORT
from fluxexp.storage.sweep_directory import SweepDirectory

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image


class SweepResult:
    """The results of one sweep: its points, their runs, and the answer. See `RunResult` about when files are read."""

    def __init__(self, directory: SweepDirectory) -> None:
        self._directory = directory
        self._reader = directory.reader.lenient()

    def __repr__(self) -> str:
        return f"<SweepResult {self.directory}: {self.status}, {len(self.runs)} points>"

    @property
    def directory(self) -> str:
        """Path or address of the sweep."""
        return str(self._directory.address)

    @property
    def report(self) -> str:
        """Path or address of the HTML page about the sweep, which exists unless `report=off`."""
        return str(self._directory.address / REPORT)

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The content of sweep.json (docs/run-directory.md)."""
        return self._reader.values() or {}

    @property
    def status(self) -> str:
        """The worst status of the points: `complete`, `complete_with_failures` or `incomplete`."""
        return str(self.summary.get("status", "incomplete"))

    @property
    def answer(self) -> str | None:
        """The sentence that says which point is good enough; None if the points cannot be compared."""
        found = self.summary.get("answer") or {}
        return found.get("sentence")

    @cached_property
    def runs(self) -> Sequence[RunResult | None]:
        """The run of each point. None: the point could not be run, or its directory is gone."""
        found: list[RunResult | None] = []
        for point in self._points:
            run = self._directory.run_of(point)
            found.append(RunResult(run) if run is not None and run.reader.is_run() else None)
        return found

    @property
    def settings(self) -> Sequence[Mapping[str, Any]]:
        """For each point, the settings that vary in the sweep, by dotted key."""
        return [point.get("settings") or {} for point in self._points]

    @property
    def failed(self) -> Mapping[str, str]:
        """The errors of the tasks that failed at any point, by task key."""
        return {key: error for run in self.runs if run is not None for key, error in run.failed.items()}

    @property
    def failed_points(self) -> Mapping[int, str]:
        """The errors of the points that could not be run, by number of the point."""
        points = enumerate(self._points)
        return {number: point.get("error") or "" for number, point in points if point.get("status") == "failed"}

    @property
    def notes(self) -> list[str]:
        """What is missing, damaged or unknown in the files that were read so far, in sentences."""
        own = dict.fromkeys(self._reader.notes)
        gone = [number for number, run in enumerate(self.runs) if run is None and number not in self.failed_points]
        if gone:
            own[f"The directories of these points are gone: {', '.join(map(str, gone))}."] = None
        runs = [f"{run.directory}: {note}" for run in self.runs if run is not None for note in run.notes]
        return [*own, *runs]

    def best(self) -> RunResult | None:
        """The run of the answer: the cheapest point that is good enough, or the best one if that is undecided.

        None without ground truths or scores.
        """
        number = (self.summary.get("answer") or {}).get("cheapest")
        return self.runs[number] if isinstance(number, int) and 0 <= number < len(self.runs) else None

    def image(self, key: str) -> Image:
        """The image of a task of any point. Raises as `RunResult.image` does."""
        for run in self.runs:
            if run is not None and key in run.records:
                return run.image(key)
        raise KeyError(key)

    def frame(self) -> pd.DataFrame:
        """One row for each task of all points, with its key as index.

        Columns: `point` (its number), the settings that vary (`sampling.steps`), those of `RunResult.frame`, and the
        distances from the images of the reference point.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = require_pandas()
        names = dict.fromkeys(name for settings in self.settings for name in settings)
        distances = self._reader.scores()
        frames = []
        for number, (run, settings) in enumerate(zip(self.runs, self.settings, strict=True)):
            if run is not None:
                columns = {"point": number, **{name: settings.get(name) for name in names}}
                frames.append(frame_of(run, columns, distances))
        frame: pd.DataFrame = pandas.concat(frames) if frames else pandas.DataFrame({"point": []})
        return frame

    def points_frame(self) -> pd.DataFrame:
        """One row for each point: settings, means of the metrics with 95 % intervals, cost, and what the answer says.

        Raises:
            ImportError: pandas is not installed.
        """
        columns, rows = points_table(self.summary)
        return rows_frame(columns, rows).set_index("point")

    @property
    def _points(self) -> Sequence[Mapping[str, Any]]:
        points: Sequence[Mapping[str, Any]] = self.summary.get("points") or ()
        return points
