"""Reads the files of a sweep and of its runs that the report needs, and leaves out damaged parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.report.axes import Axes, axes_of
from fluxexp.report.rank_timeline import RankLog
from fluxexp.report.run_data import RunData, drawable_scores, is_number, read_logs, read_run
from fluxexp.report.run_facts import mapping, sequence
from fluxexp.report.wording import settings as settings_text
from fluxexp.storage.result_files import REPORT, SWEEP, sibling_link
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.scores import ScoreValues
from fluxexp.storage.sweep_directory import SweepDirectory

_NO_SETTINGS = ("tracking", "parallelism", "output", "hydra", "report", "debug")
"""Config groups that do not change images."""


@dataclass(frozen=True, slots=True)
class PointData:
    """A point of a sweep."""

    number: int
    """Index of the point in sweep.json."""
    values: Mapping[str, Any]
    """The point's values in sweep.json."""
    settings: Mapping[str, Any]
    """The settings in which the points differ, with the values of this point."""
    run: RunData | None
    """The point's run; None if the point could not start, or its directory no longer exists."""

    @property
    def label(self) -> str:
        """Name of the point on the page."""
        return settings_text(dict(self.settings)) or f"point {self.number}"

    @property
    def href(self) -> str | None:
        """Relative URL from the page of the sweep to the page of the point's run; None if there is no run."""
        return None if self.run is None else sibling_link(self.run.name, REPORT)

    def mean(self, metric: str | None) -> Mapping[str, Any]:
        """`mean`, `low` and `high` of a metric or of a distance to the reference, as far as they are known."""
        name = metric or ""
        found = mapping(self.values.get("quality")).get(name) or mapping(self.values.get("distance")).get(name)
        return {part: value for part, value in mapping(found).items() if is_number(value)}

    def cost(self, name: str = "device_s_per_image") -> float | None:
        """A cost of the point by its key in sweep.json, or None."""
        value: Any = mapping(self.values.get("cost")).get(name)
        value = self.values.get(name) if value is None else value  # older sweeps store costs outside of `cost`
        return float(value) if is_number(value) else None

    def group(self) -> int:
        """Number of the reference of the point, or of the point itself if it is a reference."""
        reference = self.values.get("reference")
        return reference if isinstance(reference, int) else self.number

    def cost_interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval of the device time per image; (None, None) if it is not known."""
        low, high = self.cost("device_s_low"), self.cost("device_s_high")
        return (None, None) if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True)
class SweepData:
    """The content of a sweep's files. Missing files give empty values."""

    name: str
    """Name of the sweep's directory."""
    values: Mapping[str, Any]
    """The values of sweep.json."""
    points: Sequence[PointData]
    distances: ScoreValues
    """Distances of images from the images of the reference point, by task key and metric."""
    logs: Sequence[RankLog]
    """The events of each rank and session."""
    notes: Sequence[str]
    """Sentences that say what is missing or damaged."""

    def axes(self) -> Axes | None:
        """The settings that vary, as axes; None if no setting varies."""
        return axes_of([point.settings for point in self.points])

    def in_order(self) -> list[PointData]:
        """Points in the order of their settings. Measured costs do not change this order, because they are noisy."""
        axes = self.axes()
        if axes is None:
            return list(self.points)
        return sorted(self.points, key=lambda point: (*axes.place(point.settings), point.number))


Runs = Mapping[Address, RunDirectory]
"""Runs that are already open, by address. The report reuses what their readers have read."""


def read_sweep(directory: SweepDirectory, runs: Runs) -> SweepData:
    """Read the sweep in `directory` and the runs of its points.

    Raises:
        StorageError: `directory` is not the directory of a sweep.
    """
    reader = directory.reader.lenient()
    if not reader.is_sweep():
        raise StorageError(f"{directory.address} is not the directory of a sweep: it has no {SWEEP}")
    values = reader.values() or {}
    listed = [mapping(point) for point in sequence(values.get("points"))]
    settings = [mapping(point.get("settings")) for point in listed]
    if not any(settings):
        settings = _varied([sequence(point.get("overrides")) for point in listed])
    points = [
        _point(number, point, settings[number], _run_of(point, directory, runs), reader.notes)
        for number, point in enumerate(listed)
    ]
    return SweepData(directory.name, values, points, drawable_scores(reader), read_logs(reader), list(reader.notes))


def _run_of(values: Mapping[str, Any], sweep: SweepDirectory, runs: Runs) -> RunDirectory | None:
    """The directory of a point's run, which is beside the sweep; None if its name is missing or not valid."""
    name = values.get("directory")
    address = sweep.address.sibling(name) if isinstance(name, str) else None
    return None if address is None else runs.get(address) or RunDirectory(address)


def _point(
    number: int,
    values: Mapping[str, Any],
    settings: Mapping[str, Any],
    directory: RunDirectory | None,
    notes: list[str],
) -> PointData:
    run = read_run(directory) if directory is not None and directory.reader.is_run() else None
    point = PointData(number, values, settings, run)
    if values.get("error"):
        notes.append(f"{point.label}: {values['error']}")
    elif run is None:
        notes.append(f"{point.label}: there is no run directory of this point beside the directory of the sweep.")
    else:
        notes.extend(f"{point.label}: {note}" for note in run.notes)
    return point


def _varied(overrides: Sequence[Sequence[Any]]) -> list[Mapping[str, Any]]:
    """The overrides that differ between points. For older sweeps, whose sweep.json has no settings."""
    typed = [dict(str(override).split("=", 1) for override in row if "=" in str(override)) for row in overrides]
    names = [name for name in dict.fromkeys(name for row in typed for name in row) if not name.startswith(_NO_SETTINGS)]
    varied = [name for name in names if len({row[name] for row in typed if name in row}) > 1]
    return [{name: _value(row[name]) for name in varied if name in row} for row in typed]


def _value(text: str) -> Any:
    """The value of an override: a YAML scalar, or the text itself."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str | int | float | bool) else text
