"""Deaths of processes by task: counted from the streams of `attempts/`, and kept in `process_deaths.json`.

A task that a process began and did not record, and whose process neither deleted its stream nor was asked to stop, may
be the reason of its death. Only rank 0 calls this module, while it holds the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fluxexp.errors import StorageError
from fluxexp.storage.attempts import WorkerProcess
from fluxexp.storage.record_lines import line_streams
from fluxexp.storage.result_files import ATTEMPTS, PROCESS_DEATHS
from fluxexp.storage.run_store import RunStore

_LATEST_S = 1e11
"""The year 5138."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessDeath:
    """A process that died while it worked on a task."""

    host: str
    pid: int
    rank: int
    begun_s: float
    """When the process began the task, in seconds since the epoch."""


Deaths = Mapping[str, Sequence[ProcessDeath]]
"""Deaths by task key, oldest first."""


class DeathRegister:
    """Counts the deaths of the processes of one run."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def count(self, *, session: str | None = None, ranks: Sequence[int] = ()) -> Deaths:
        """Count the deaths since the last call, and return all deaths of all tasks.

        Without arguments, every stream belongs to a process that has ended: call it before a session starts to work.
        During a session, only the processes of the lost `ranks` of `session` are counted.

        Raises:
            StorageError: the counts cannot be read or written.
        """
        try:
            return self._count(session, ranks)
        except OSError as error:
            raise StorageError(f"{self._store.address}/{PROCESS_DEATHS} cannot be used: {error}") from error

    def forget(self, deaths: Deaths, keys: Sequence[str]) -> None:
        """Remove tasks that were made since."""
        kept = {key: found for key, found in deaths.items() if key not in set(keys)}
        if len(kept) < len(deaths):
            try:
                self._write(kept, [])
            except OSError as error:
                raise StorageError(f"{self._store.address}/{PROCESS_DEATHS} cannot be used: {error}") from error

    def _count(self, session: str | None, ranks: Sequence[int]) -> Deaths:
        deaths, counted = self._read()
        streams = line_streams(self._store, ATTEMPTS)
        ended: list[str] = []
        blamed: set[tuple[str, str]] = set()
        """Session and task. The ranks of a replica that die together are one death of their tasks."""
        for stream in streams:
            if stream in counted:
                ended.append(stream)
                continue
            lines = list(_lines(self._store.records(stream)))
            process = _process(lines)
            if session is not None and (process is None or process.session != session or process.rank not in ranks):
                continue
            ended.append(stream)
            if process is not None and not any(line.get("stopping") for line in lines):
                for key, begun_s in _open_tasks(lines).items():
                    if (process.session, key) not in blamed:
                        blamed.add((process.session, key))
                        death = ProcessDeath(host=process.host, pid=process.pid, rank=process.rank, begun_s=begun_s)
                        deaths.setdefault(key, []).append(death)
        if blamed:  # written before the streams are deleted: if this process dies in between, none counts twice
            self._write(deaths, ended)
        for stream in ended:
            self._store.delete(stream)
        return deaths

    def _read(self) -> tuple[dict[str, list[ProcessDeath]], Sequence[str]]:
        """Deaths by task, and the streams that they include. A damaged file counts as none."""
        content = self._store.get(PROCESS_DEATHS)
        try:
            values = json.loads(content) if content is not None else {"tasks": {}, "streams": []}
            tasks = {key: found for key, found in values["tasks"].items() if _is_writable(key)}
            deaths = {key: [_death(value) for value in found] for key, found in tasks.items()}
            return deaths, _keys(values["streams"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}, []

    def _write(self, deaths: Deaths, streams: Sequence[str]) -> None:
        tasks = {key: [asdict(death) for death in found] for key, found in deaths.items()}
        content = json.dumps({"tasks": tasks, "streams": list(streams)}, ensure_ascii=False, indent=1)
        self._store.put(PROCESS_DEATHS, f"{content}\n".encode())


def _lines(records: Sequence[bytes]) -> Iterator[Mapping[str, Any]]:
    """The objects of a stream. A damaged line is left out: at worst, a death is not counted."""
    for record in records:
        try:
            line = json.loads(record)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line


def _process(lines: Sequence[Mapping[str, Any]]) -> WorkerProcess | None:
    try:
        values = lines[0]["process"]
        return WorkerProcess(
            session=_text(values["session"]),
            rank=int(values["rank"]),
            host=_text(values["host"]),
            pid=int(values["pid"]),
        )
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _open_tasks(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Keys of the tasks that were begun and not ended, each with the time of its begin."""
    begun: dict[str, float] = {}
    for line in lines:
        for key in _keys(line.get("end")):
            begun.pop(key, None)
        for key in _keys(line.get("begin")):
            begun[key] = _seconds(line.get("at_s"))
    return begun


def _keys(value: object) -> list[str]:
    return [key for key in value if isinstance(key, str) and _is_writable(key)] if isinstance(value, list) else []


def _is_writable(key: str) -> bool:
    """Whether a key has no halves of surrogate pairs, which no UTF-8 file can hold, and no task key has."""
    return key.isascii() or not any("\ud800" <= character <= "\udfff" for character in key)


def _text(value: object) -> str:
    """Text that can be written as UTF-8. ValueError if it is not."""
    text = str(value)
    text.encode()
    return text


def _seconds(value: object) -> float:
    """A time since the epoch; 0 if it is none that a calendar has."""
    return float(value) if isinstance(value, (int, float)) and 0 <= value < _LATEST_S else 0.0


def _death(value: Mapping[str, Any]) -> ProcessDeath:
    return ProcessDeath(
        host=_text(value["host"]), pid=int(value["pid"]), rank=int(value["rank"]), begun_s=_seconds(value["begun_s"])
    )
