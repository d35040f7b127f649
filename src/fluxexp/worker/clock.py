"""When a device began and ended its work, without making the thread that gives it work wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fluxexp.telemetry.events import now_s


class Clock(Protocol):
    """Marks moments in a device's work, and tells later when they were."""

    is_ahead: bool
    """Whether work may be given to the device before it is done with what it has."""

    def mark(self) -> Any:
        """The moment when all that was given to the device so far will be done. Does not wait."""
        ...

    def is_past(self, mark: Any) -> bool:
        """Whether the moment has come."""
        ...

    def times(self, marks: Sequence[Any]) -> list[float]:
        """Seconds since the epoch of `marks`, which are in order. Waits for the last; one thread at a time."""
        ...


class HostClock:
    """Of a device that has done its work when the call returns."""

    is_ahead = False

    def mark(self) -> float:
        """Now."""
        return now_s()

    def is_past(self, mark: float) -> bool:
        """Always."""
        return True

    def times(self, marks: Sequence[float]) -> list[float]:
        """The marks themselves."""
        return list(marks)


class CudaClock:
    """Of a GPU: marks are events in its stream, each measured from one whose time is known."""

    is_ahead = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = self.mark()
        self._known.synchronize()
        self._known_s = now_s()

    def mark(self) -> torch.cuda.Event:
        """An event in the current stream."""
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def is_past(self, mark: torch.cuda.Event) -> bool:
        """Whether the stream has come to the event."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def times(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        """Never later than now, and so never later than what is marked after them."""
        marks[-1].synchronize()
        latest_s = now_s()
        times = [min(latest_s, self._known_s + self._known.elapsed_time(mark) / 1e3) for mark in marks]
        # From the nearest mark on: a float32 of milliseconds is coarse after hours.
        self._known, self._known_s = marks[-1], times[-1]
        return times


def clock_of(device: torch.device) -> Clock:
    """The clock that fits `device`."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
