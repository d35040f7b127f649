"""The event log of one rank: one line of JSON for each span of time.

Times are seconds since the epoch, so that ranks on several hosts can be compared. Within a process they advance with
the monotonic clock: if somebody sets the clock during a run, the lengths of spans stay right. The module does not know
devices: the caller passes `synchronize` for spans that must wait for one.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

Synchronize = Callable[[], None]
"""Waits until a device has finished its queued work."""

_EPOCH_MINUS_MONOTONIC_S = time.time() - time.monotonic()


def now_s() -> float:
    """Return seconds since the epoch. Within a process they never decrease."""
    return time.monotonic() + _EPOCH_MINUS_MONOTONIC_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One span: what a rank did from `start_s` to `end_s` (seconds since the epoch).

    `span` names the stage: load, read, condition, denoise, decode, write, wait or steal. `batch` is the number of the
    rank's batch, `tasks` the number of tasks in the span. Throughput leaves out `warmup` spans. `error` is the
    exception that ended the span, if any. `extra` holds other values of the caller.
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
        """Length of the span in seconds."""
        return self.end_s - self.start_s

    def to_json(self) -> str:
        """Return one line of JSON, without the newline. Values that are None are left out."""
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
        """Read what `to_json` wrote.

        Raises:
            ValueError: the line is not an event.
        """
        try:
            values = json.loads(line)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError(f"an event is a JSON object, not {type(values).__name__}")
        names = [name for name in cls.__dataclass_fields__ if name != "extra"]
        known = {name: values.pop(name) for name in names if name in values}
        _require_types(known)
        try:
            return cls(**known, extra=values)
        except TypeError as error:
            raise ValueError(str(error)) from None


def _require_types(known: Mapping[str, Any]) -> None:
    """Check the values of an event's fields. ValueError if one has another type than `Event` says."""
    for name, value in known.items():
        if name in ("start_s", "end_s"):
            is_right = _is_finite(value)
        elif name in ("batch", "tasks"):
            is_right = value is None or (isinstance(value, int) and _is_finite(value))
        elif name == "warmup":
            is_right = isinstance(value, bool)
        else:
            is_right = isinstance(value, str) or (value is None and name == "error")
        if not is_right:
            raise ValueError(f"{name} of an event cannot be {value!r:.40}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


_LARGEST = 1e15
_KEPT_LINES = 10_000
"""Lines that may wait while they cannot be appended."""
_PAUSE_S = 1.0
"""After an error, the log does not try to append for this long."""


class EventLog:
    """Passes each event to `append` as one line, and to `listeners`. Threads may share it.

    `append` gets a line of JSON as UTF-8 without its newline, from one thread at a time. Its errors never reach the
    caller, because the work is worth more than its figures: lines wait in memory, `append` gets them later, and `close`
    says what is lost.
    """

    def __init__(self, append: Callable[[bytes], None], *, listeners: Iterable[Callable[[Event], None]] = ()) -> None:
        self._append = append
        self._listeners = tuple(listeners)
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._num_lost = 0
        self._error: Exception | None = None
        self._paused_until_s = 0.0

    @contextmanager
    def span(
        self,
        name: str,
        *,
        batch: int | None = None,
        tasks: int | None = None,
        warmup: bool = False,
        synchronize: Synchronize | None = None,
        **extra: Any,
    ) -> Generator[None]:
        """Record the body as one event. If the body raises, the event holds the error, and the exception propagates.

        `synchronize` is for spans of a device's work: it runs before the clock stops. Without it, the span would end
        while the device still works. If it raises, the event holds that error. Spans of the host's work do not use it,
        because they must not wait for the device.
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
        """Append one event and pass it to the listeners."""
        # An error's text can contain surrogates, from a file name for example. JSON spells them as the escapes do.
        line = event.to_json().encode(errors="backslashreplace")
        with self._lock:
            self._waiting.append(line)
            if time.monotonic() >= self._paused_until_s:
                self._append_waiting()
            while len(self._waiting) > _KEPT_LINES:
                self._waiting.popleft()
                self._num_lost += 1
        for listener in self._listeners:
            listener(event)

    def close(self) -> str | None:
        """Append what waits. Returns a sentence about the lines that are lost; None if there are none."""
        with self._lock:
            self._append_waiting()
            num_lost = self._num_lost + len(self._waiting)
        return f"{num_lost} events could not be written: {self._error}" if num_lost else None

    def _append_waiting(self) -> None:
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except Exception as error:  # of a store of any kind
            self._error = error
            self._paused_until_s = time.monotonic() + _PAUSE_S


def part_of_run(event: Event, number: int) -> Event | None:
    """Return the part of `event` that belongs to run `number` of several that share a model; None if there is none.

    `share` in `extra` of the result is the run's fraction of the span's tasks. Its seconds are divided in the same way.
    """
    runs = {int(run): count for run, count in event.extra.get("runs", {}).items()}
    if number not in runs:
        return None
    others = {name: value for name, value in event.extra.items() if name != "runs"}
    tasks = runs[number] if event.tasks else event.tasks
    return replace(event, tasks=tasks, extra={**others, "share": runs[number] / sum(runs.values())})
