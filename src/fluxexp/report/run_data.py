"""What lies in a run's directory, read so that damage costs no more than what is damaged.

A report is wanted most when something went wrong: nothing but a directory that is no run at all is refused. What is
missing or unreadable is said in `RunData.notes`. Knows no pictures and no pages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.report.rank_timeline import RankLog
from fluxexp.storage.manifest import merge
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.scores import read_scores
from fluxexp.telemetry.events import Event

T = TypeVar("T")
RunScores = Mapping[str, Mapping[str, float | None]]
"""By task key and metric."""


@dataclass(frozen=True, slots=True)
class RunData:
    """A run's files as values."""

    path: Path
    config: Mapping[str, Any]
    overrides: Sequence[str]
    """What was typed."""
    records: Mapping[str, Record]
    """What became of each task, those included whose image has gone since."""
    scores: RunScores
    summary: Mapping[str, Any]
    logs: Sequence[RankLog]
    notes: Sequence[str]
    """What is missing, in sentences."""

    def setting(self, path: str) -> Any:
        """The config's value at `a.b`, None where there is none."""
        value: Any = self.config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    @property
    def name(self) -> str:
        """The directory's name, which is the run's."""
        return self.path.name


def is_run(path: Path) -> bool:
    """Whether `path` is the directory of a run."""
    return (path / "config.yaml").is_file()


def read_run(path: Path) -> RunData:
    """The run in directory `path`.

    Raises:
        StorageError: it is not the directory of a run.
    """
    if not is_run(path):
        raise StorageError(f"{path} is not the directory of a run: it has no config.yaml")
    notes: list[str] = []
    directory = RunDirectory(path)
    overrides = read_yaml(path / "overrides.yaml", notes, list)
    return RunData(
        path=path,
        config=read_yaml(path / "config.yaml", notes, dict),
        overrides=[str(override) for override in overrides],
        records=merge(iter(_records(directory.manifest, notes))),
        scores=read_run_scores(path / "scores", notes),
        summary=read_json(directory.summary, notes, "summary.json: the run has not come to its end"),
        logs=read_logs(directory.events, notes),
        notes=notes,
    )


def read_yaml(path: Path, notes: list[str], kind: type[T]) -> T:
    """What the file says, or an empty `kind` and a note."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"There is no {path.name}.")
        return kind()
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{path.name} cannot be read: {_one_line(error)}")
        return kind()
    return values if isinstance(values, kind) else kind()


def read_json(path: Path, notes: list[str], without: str) -> dict[str, Any]:
    """The object in the file; nothing and a note where there is none. `without` says what that means."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"There is no {without}.")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {_one_line(error)}")
        return {}
    return values if isinstance(values, dict) else {}


def read_run_scores(directory: Path, notes: list[str]) -> RunScores:
    """Scores by task key; none of them, and a note, if a line is damaged."""
    try:
        found = read_scores(directory)
    except (StorageError, OSError) as error:
        notes.append(f"Scores cannot be read: {_one_line(error)}")
        return {}
    return {key: {n: v if is_number(v) else None for n, v in values.items()} for key, values in found.items()}


def is_number(value: Any) -> bool:
    """Whether `value` can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_logs(directory: Path, notes: list[str]) -> list[RankLog]:
    """The events of every rank and session; damaged lines are left out and counted."""
    logs: list[RankLog] = []
    for file in sorted(directory.glob("rank-*.jsonl")):
        number = file.name.split("-")[1]
        events = list(_lines([file], _event, notes, "events"))
        if number.isdecimal() and events:
            logs.append(RankLog(int(number), events))
    if not logs:
        notes.append("There are no events: nothing says when a rank did what.")
    return logs


def _records(directory: Path, notes: list[str]) -> list[Record]:
    records = list(_lines(sorted(directory.glob("*.jsonl")), _record, notes, "the manifest"))
    if not records:
        notes.append("The manifest is empty: no task has been tried.")
    return records


def _record(line: str) -> Record:
    record = Record.from_json(line)
    if not isinstance(record.key, str) or not isinstance(record.sample_key, str):
        raise ValueError("no key")
    if not isinstance(record.attempt, int) or not isinstance(record.rank, int):
        raise ValueError("no attempt")
    return record


def _event(line: str) -> Event:
    event = Event.from_json(line)
    if not all(map(is_number, (event.start_s, event.end_s, event.tasks or 0))) or not isinstance(event.span, str):
        raise ValueError("no time")
    return event


def _lines(files: Sequence[Path], parse: Callable[[str], T], notes: list[str], what: str) -> Iterator[T]:
    """Every line that can be read; a torn last one, of a session that was killed, goes without saying."""
    damaged = 0
    for file in files:
        try:
            with file.open(encoding="utf-8", errors="replace", newline="\n") as stream:
                lines = list(stream)  # not splitlines: a prompt may hold what Unicode calls a line's end
        except OSError as error:
            notes.append(f"{file.name} cannot be read: {_one_line(error)}")
            continue
        for line in lines:
            try:
                yield parse(line)
            except ValueError:
                damaged += line.endswith("\n")
    if damaged:
        notes.append(f"{damaged} damaged lines of {what} are left out.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
