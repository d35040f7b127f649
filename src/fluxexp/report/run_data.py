"""What the report needs of a run, from a lenient reader: damage costs only what is damaged.

A report is most useful when something went wrong. So only a directory that is not a run is an error. `RunData.notes`
says what is missing or damaged. This module knows neither images nor pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.report.rank_timeline import RankLog
from fluxexp.storage.result_reader import ResultReader, rank_of_events
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.scores import ScoreValues
from fluxexp.telemetry.events import Event


@dataclass(frozen=True, slots=True)
class RunData:
    """The files of a run as values."""

    directory: RunDirectory
    config: Mapping[str, Any]
    overrides: Sequence[str]
    """The overrides on the command line."""
    records: Mapping[str, Record]
    """The result of each task, including tasks whose image is gone."""
    scores: ScoreValues
    summary: Mapping[str, Any]
    logs: Sequence[RankLog]
    notes: Sequence[str]
    """What is missing or damaged, in sentences."""

    def setting(self, path: str) -> Any:
        """The config's value at `a.b`, or None."""
        value: Any = self.config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    @property
    def path(self) -> Path:
        """The run's directory."""
        return self.directory.path

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.path.name


def read_run(directory: RunDirectory) -> RunData:
    """The run in `directory`.

    Raises:
        StorageError: it is not the directory of a run.
    """
    reader = directory.reader.lenient()
    if not reader.is_run():
        raise StorageError(f"{directory.path} is not the directory of a run: it has no config.yaml")
    overrides, config, records = reader.overrides(), reader.config_values(), reader.records()
    if not records:
        reader.notes.append("The manifest is empty: no task has been tried.")
    scores, summary = drawable_scores(reader), reader.summary()
    if summary is None and not any(note.startswith("summary.json") for note in reader.notes):
        reader.notes.append("There is no summary.json: the run is not complete.")
    return RunData(
        directory=directory,
        config=config,
        overrides=overrides,
        records=records,
        scores=scores,
        summary=summary or {},
        logs=read_logs(reader),
        notes=reader.notes,
    )


def drawable_scores(reader: ResultReader) -> ScoreValues:
    """Scores by task key; None for a value that is not a number."""
    return {
        key: {name: value if is_number(value) else None for name, value in values.items()}
        for key, values in reader.scores().items()
    }


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_logs(reader: ResultReader) -> list[RankLog]:
    """The events of every rank and session."""
    logs = [
        RankLog(rank, events)
        for name, events in reader.events(_event).items()
        if events and (rank := rank_of_events(name)) is not None
    ]
    if not logs:
        reader.notes.append("There are no events, so the report cannot show what each rank did and when.")
    return logs


def _event(line: str) -> Event:
    event = Event.from_json(line)
    if not all(map(is_number, (event.start_s, event.end_s, event.tasks or 0))) or not isinstance(event.span, str):
        raise ValueError("no time")
    return event
