"""What the report needs of a sweep and of its runs. As for runs, damage costs only what is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fluxexp.errors import StorageError
from fluxexp.report.rank_timeline import RankLog
from fluxexp.report.run_data import RunData, drawable_scores, is_number, read_logs, read_run
from fluxexp.report.run_facts import mapping, sequence
from fluxexp.report.wording import settings as settings_text
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.scores import ScoreValues
from fluxexp.storage.sweep_directory import SweepDirectory

_PLUMBING = ("tracking", "parallelism", "output", "hydra", "report", "debug")
"""Groups of overrides that do not change images."""


@dataclass(frozen=True, slots=True)
class PointData:
    """A point of a sweep."""

    number: int
    values: Mapping[str, Any]
    """As sweep.json has it."""
    settings: Mapping[str, Any]
    """The settings in which points differ."""
    path: Path | None
    """The run's directory."""
    run: RunData | None
    """None if it could not be run, or is gone."""

    @property
    def label(self) -> str:
        """Its name on the page."""
        return settings_text(dict(self.settings)) or f"point {self.number}"

    def mean(self, metric: str | None) -> Mapping[str, Any]:
        """Mean and interval of a metric or of a distance to the reference. Empty if there is none."""
        name = metric or ""
        found = mapping(self.values.get("quality")).get(name) or mapping(self.values.get("distance")).get(name)
        return {part: value for part, value in mapping(found).items() if is_number(value)}

    def cost(self, name: str = "device_s_per_image") -> float | None:
        """A cost of the point; older sweeps store it in another place."""
        value: Any = mapping(self.values.get("cost")).get(name)
        value = self.values.get(name) if value is None else value
        return float(value) if is_number(value) else None


@dataclass(frozen=True, slots=True)
class SweepData:
    """A sweep's files as values."""

    path: Path
    values: Mapping[str, Any]
    points: Sequence[PointData]
    distances: ScoreValues
    """Distances of images from the images of the reference, by task key."""
    logs: Sequence[RankLog]
    notes: Sequence[str]

    def by_cost(self) -> list[PointData]:
        """Points sorted by cost; points of unknown cost follow in their own order."""
        return sorted(self.points, key=lambda point: (point.cost() is None, point.cost() or 0.0, point.number))


Runs = Mapping[Path, RunDirectory]
"""Runs that are open already, by path: what their readers have read is not read again."""


def read_sweep(directory: SweepDirectory, runs: Runs) -> SweepData:
    """The sweep in `directory`, with the runs of its points.

    Raises:
        StorageError: it is not the directory of a sweep.
    """
    reader = directory.reader.lenient()
    if not reader.is_sweep():
        raise StorageError(f"{directory.path} is not the directory of a sweep: it has no sweep.json")
    values = reader.values() or {}
    listed = [mapping(point) for point in sequence(values.get("points"))]
    settings = [mapping(point.get("settings")) for point in listed]
    if not any(settings):
        settings = _varied([sequence(point.get("overrides")) for point in listed])
    root = directory.path.parent
    points = [
        _point(number, point, settings[number], _run_of(point, root, runs), reader.notes)
        for number, point in enumerate(listed)
    ]
    return SweepData(directory.path, values, points, drawable_scores(reader), read_logs(reader), reader.notes)


def _run_of(values: Mapping[str, Any], root: Path, runs: Runs) -> RunDirectory | None:
    """The run of a point. A damaged sweep.json must not lead out of `root`."""
    name = values.get("directory")
    if not isinstance(name, str) or Path(name).name != name:
        return None
    return runs.get(root / name) or RunDirectory(root / name)


def _point(
    number: int,
    values: Mapping[str, Any],
    settings: Mapping[str, Any],
    directory: RunDirectory | None,
    notes: list[str],
) -> PointData:
    run = read_run(directory) if directory is not None and directory.reader.is_run() else None
    point = PointData(number, values, settings, directory.path if directory else None, run)
    if values.get("error"):
        notes.append(f"{point.label}: {values['error']}")
    elif run is None:
        notes.append(f"{point.label}: its directory is not beside the sweep's.")
    else:
        notes.extend(f"{point.label}: {note}" for note in run.notes)
    return point


def _varied(overrides: Sequence[Sequence[Any]]) -> list[Mapping[str, Any]]:
    """The overrides that differ between points, for an older sweep without settings."""
    typed = [dict(str(override).split("=", 1) for override in row if "=" in str(override)) for row in overrides]
    names = [name for name in dict.fromkeys(name for row in typed for name in row) if not name.startswith(_PLUMBING)]
    varied = [name for name in names if len({row[name] for row in typed if name in row}) > 1]
    return [{name: _value(row[name]) for name in varied if name in row} for row in typed]


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, str | int | float | bool) else text
