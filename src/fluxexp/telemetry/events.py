"""The event log of one rank: a line of JSON for each span of time, and the way back from lines to events.

Times are seconds since the epoch, so that ranks on several hosts can be laid side by side. Within a process they
advance with the monotonic clock: a clock that is set during a run bends no span. Knows no devices: what has to be
waited for before a clock may stop is handed in as `synchronise`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

Synchronise = Callable[[], None]

_EPOCH_MINUS_MONOTONIC_S = time.time() - time.monotonic()


def now_s() -> float:
    """Seconds since the epoch, never running backwards within a process."""
    return time.monotonic() + _EPOCH_MINUS_MONOTONIC_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One span: what a rank did from `start_s` to `end_s` (seconds since the epoch).

    `span` is a stage: load, read, condition, denoise, decode, write or wait. `batch` counts a rank's batches, `tasks`
    is how many tasks the span worked on. `warmup` spans never enter throughput. `error` is set where the span ended
    by an exception. `extra` holds whatever else the caller said.
    """

    span: str
    start_s: float
    end_s: float
    batch: int | None = None
    tasks: int | None = None
    warmup: bool = False
    error: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length of the span."""
        return self.end_s - self.start_s

    def to_json(self) -> str:
        """One line of JSON, without the newline; what is unknown is left out."""
        known = {
            "span": self.span,
            "start_s": round(self.start_s, 6),
            "end_s": round(self.end_s, 6),
            "batch": self.batch,
            "tasks": self.tasks,
            "warmup": self.warmup,
            "error": self.error,
        }
        values = {name: value for name, value in {**self.extra, **known}.items() if value is not None}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Inverse of `to_json`; ValueError for anything else."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"an event is a JSON object, not {type(values).__name__}")
        names = [name for name in cls.__dataclass_fields__ if name != "extra"]
        known = {name: values.pop(name) for name in names if name in values}
        try:
            return cls(**known, extra=values)
        except TypeError as error:
            raise ValueError(str(error)) from None


class EventLog:
    """Appends events to `path`, from any thread, and tells them to `listeners`.

    A line is written whole, by one write to a file opened for appending. A line that an earlier session left torn is
    cut off first, so that only the last line of the file can ever be torn.

    Raises:
        OSError: the file cannot be opened or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        listeners: Iterable[Callable[[Event], None]] = (),
    ) -> None:
        self._listeners = tuple(listeners)
        self._lock = threading.Lock()
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        _cut_torn_line(self._fd)

    @contextmanager
    def span(
        self,
        name: str,
        *,
        batch: int | None = None,
        tasks: int | None = None,
        warmup: bool = False,
        synchronize: Synchronise | None = None,
        **extra: Any,
    ) -> Generator[None]:
        """Time the body as one event; an exception is recorded and passes through.

        `synchronise` runs before the clock stops, for spans of a device's work: a device that is still working would
        otherwise make the span look short. If it raises, that is the span's error. Spans of the host's work go without:
        the device is on something else meanwhile, and is not to be waited for.
        """
        start_s = now_s()
        error: str | None = None
        try:
            yield
            if synchronize is not None:
                synchronize()
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            self.write(
                Event(
                    span=name,
                    start_s=start_s,
                    end_s=now_s(),
                    batch=batch,
                    tasks=tasks,
                    warmup=warmup,
                    error=error,
                    extra=extra,
                )
            )

    def write(self, event: Event) -> None:
        """Append one event and tell it to the listeners. ValueError once the log is closed."""
        line = (event.to_json() + "\n").encode()
        with self._lock:
            if self._fd is None:
                raise ValueError("the event log is closed")
            _write_all(self._fd, line)
        for listener in self._listeners:
            listener(event)

    def close(self) -> None:
        """Close the file; safe to call again."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def part_of_run(event: Event, number: int) -> Event | None:
    """What `event` was to run `number` of several that share a model; None if it was nothing to it.

    `share` in the result's `extra` is the run's part of the span's tasks, and so of its seconds.
    """
    runs = {int(run): count for run, count in event.extra.get("runs", {}).items()}
    if number not in runs:
        return None
    others = {name: value for name, value in event.extra.items() if name != "runs"}
    tasks = runs[number] if event.tasks else event.tasks
    return replace(event, tasks=tasks, extra={**others, "share": runs[number] / sum(runs.values())})


def read_events(path: Path) -> list[Event]:
    """All events of the log at `path`, in the order they ended. A torn last line is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: any other line is not an event; the message names the line.
    """
    *lines, _torn_or_empty = path.read_bytes().split(b"\n")
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(Event.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not an event ({error})") from error
    return events


def _write_all(fd: int, data: bytes) -> None:
    """`os.write` takes fewer bytes than given only when a disk fills up; the next call then raises."""
    while data:
        data = data[os.write(fd, data) :]


def _cut_torn_line(fd: int, block: int = 4096) -> None:
    """Truncate the file after its last newline."""
    end = os.fstat(fd).st_size
    position = end
    while position > 0:
        start = max(0, position - block)
        newline = os.pread(fd, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    if position < end:
        os.ftruncate(fd, position)
