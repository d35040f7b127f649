"""Measure when a device starts and ends its work, without blocking the thread that submits the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fluxexp.telemetry.events import now_s


class Clock(Protocol):
    """Marks points in the work queue of a device, and later gives their times."""

    is_ahead: bool
    """Whether the host can submit work before the device has finished earlier work."""

    def mark(self) -> Any:
        """Mark the end of all work submitted so far. Does not wait."""
        ...

    def is_past(self, mark: Any) -> bool:
        """Whether the device has reached the mark."""
        ...

    def times(self, marks: Sequence[Any]) -> list[float]:
        """Times of `marks` (in order), in seconds since the epoch. Waits for the last mark; not thread-safe."""
        ...


class HostClock:
    """For a device that has finished its work when the call returns, such as a CPU."""

    is_ahead = False

    def mark(self) -> float:
        """The current time."""
        return now_s()

    def is_past(self, mark: float) -> bool:
        """Always True."""
        return True

    def times(self, marks: Sequence[float]) -> list[float]:
        """The marks themselves."""
        return list(marks)


class CudaClock:
    """For a GPU: marks are CUDA events. The time of a mark is measured from an earlier event whose time is known."""

    is_ahead = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = self.mark()
        self._known.synchronize()
        self._known_s = now_s()

    def mark(self) -> torch.cuda.Event:
        """Record an event in the current stream."""
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def is_past(self, mark: torch.cuda.Event) -> bool:
        """Whether the stream has reached the event."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def times(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        """See `Clock`. Times are never later than now, so they stay in order with times that the host measures."""
        marks[-1].synchronize()
        latest_s = now_s()
        times = [min(latest_s, self._known_s + self._known.elapsed_time(mark) / 1e3) for mark in marks]
        # Measure from the latest mark: elapsed_time is a float32 of milliseconds, which is imprecise after hours.
        self._known, self._known_s = marks[-1], times[-1]
        return times


def clock_of(device: torch.device) -> Clock:
    """The clock for `device`."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
