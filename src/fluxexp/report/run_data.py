"""Reads the files of a run that the report needs, and leaves out damaged parts.

A report is most useful when something went wrong. So the only error is a directory that is not a run. `RunData.notes`
says what is missing or damaged. This module knows neither images nor pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.report.rank_timeline import RankLog
from fluxexp.storage.result_files import CONFIG, SUMMARY
from fluxexp.storage.result_reader import ResultReader
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.scores import ScoreValues
from fluxexp.telemetry.events import Event

MAX_RECORDS = 20_000
"""A page of more results would need gigabytes of memory, and shows only some hundreds of them."""


@dataclass(frozen=True, slots=True)
class RunData:
    """The content of a run's files. Missing files give empty values."""

    directory: RunDirectory
    config: Mapping[str, Any]
    """The values of config.yaml."""
    overrides: Sequence[str]
    """The overrides on the command line."""
    records: Mapping[str, Record]
    """The result of each task by task key, including tasks whose image no longer exists. At most `MAX_RECORDS`."""
    num_ok: int
    """Tasks that succeeded, of all records."""
    num_failed: int
    scores: ScoreValues
    """Scores by task key and metric."""
    summary: Mapping[str, Any]
    """The values of summary.json."""
    logs: Sequence[RankLog]
    """The events of each rank and session."""
    notes: Sequence[str]
    """Sentences that say what is missing or damaged."""

    def setting(self, path: str) -> Any:
        """The config value at a dotted path such as `sampling.steps`, or None."""
        value: Any = self.config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.directory.name


def read_run(directory: RunDirectory) -> RunData:
    """Read the run in `directory`.

    Raises:
        StorageError: `directory` is not the directory of a run.
    """
    reader = directory.reader.lenient()
    if not reader.is_run():
        raise StorageError(f"{directory.address} is not the directory of a run: it has no {CONFIG}")
    overrides, config, records = reader.overrides(), reader.config_values(), reader.records()
    shown = records.at_most(MAX_RECORDS)
    if len(shown) < len(records):
        reader.notes.append(f"The page is made from {len(shown)} of {len(records)} results. The counts are of all.")
    if not records:
        reader.notes.append("The manifest is empty: fluxexp has not tried any task yet.")
    scores, summary = drawable_scores(reader), reader.summary()
    if summary is None and not any(note.startswith(SUMMARY) for note in reader.notes):
        reader.notes.append(f"There is no {SUMMARY}, which a session writes at its end: the run is not complete.")
    return RunData(
        directory=directory,
        config=config,
        overrides=overrides,
        records=shown,
        num_ok=records.num_ok(),
        num_failed=len(records) - records.num_ok(),
        scores=scores,
        summary=summary or {},
        logs=read_logs(reader),
        notes=reader.notes,
    )


def drawable_scores(reader: ResultReader) -> ScoreValues:
    """Scores by task key and metric, with None instead of every value that is not a finite number."""
    return {
        key: {name: value if is_number(value) else None for name, value in values.items()}
        for key, values in reader.scores().items()
    }


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_logs(reader: ResultReader) -> list[RankLog]:
    """The events of every rank and session. If there are none, adds a note to `reader`."""
    logs = [RankLog(rank_session.rank, events) for rank_session, events in reader.events(_event).items() if events]
    if not logs:
        reader.notes.append("There are no events, so the report cannot show what each rank did and when.")
    return logs


def _event(line: str) -> Event:
    event = Event.from_json(line)
    if not all(map(is_number, (event.start_s, event.end_s, event.tasks or 0))) or not isinstance(event.span, str):
        raise ValueError("an event needs a span name and finite times")
    return event
