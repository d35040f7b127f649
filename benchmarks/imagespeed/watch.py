"""Measures in a thread how long the device is idle, and what the host does meanwhile.

A profiler would see every kernel, but it slows down kernel launches, and so changes what it measures. A query of a
stream takes about a microsecond.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

from fluxexp.telemetry.events import now_s

_PAUSE_S = 0.0002
"""Time between two observations."""
_PROJECT_MODULES = ("fluxexp", "imagespeed")


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of the device and of the watched thread at one time."""

    at_s: float
    """Seconds since the epoch."""
    is_idle: bool
    activity: str
    """What the watched thread did, if the device was idle; else empty."""


class Watch:
    """A context manager that observes the device and the thread that entered it, as often as possible.

    Args:
        is_idle: returns whether the device is idle. Another thread calls it.
    """

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        self._is_idle = is_idle
        self._observations: list[Observation] = []
        self._error: Exception | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="watch", daemon=True)
        self._switch_s = sys.getswitchinterval()

    def waiting(self, start_s: float, end_s: float) -> tuple[float, list[tuple[str, float]]]:
        """Fraction of the time from `start_s` to `end_s` in which the device was idle, and idle seconds by activity."""
        by_activity: dict[str, float] = {}
        for activity, seconds in idle_times(self._observations, start_s, end_s):
            by_activity[activity] = by_activity.get(activity, 0.0) + seconds
        return sum(by_activity.values()) / (end_s - start_s), sorted(by_activity.items(), key=lambda item: -item[1])

    def __enter__(self) -> Self:
        # The observing thread needs the GIL. With the default interval, a computing thread would keep it for too long,
        # and the host often computes while the device waits.
        sys.setswitchinterval(_PAUSE_S)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_s)
        if self._error is not None and error is None:
            raise self._error

    def _watch(self, watched: int) -> None:
        try:
            while not self._is_over.is_set():
                is_idle = self._is_idle()
                activity = _activity(sys._current_frames().get(watched)) if is_idle else ""
                self._observations.append(Observation(now_s(), is_idle, activity))
                time.sleep(_PAUSE_S)
        except Exception as error:  # __exit__ raises it in the watched thread
            self._error = error


def idle_times(observations: Sequence[Observation], start_s: float, end_s: float) -> list[tuple[str, float]]:
    """Activity and seconds of each idle observation between `start_s` and `end_s`.

    An observation counts for the time that is closer to it than to any other one, because observations come late when
    the host is busy.
    """
    times = []
    for number, observation in enumerate(observations):
        since_s = (observations[number - 1].at_s + observation.at_s) / 2 if number else start_s
        until_s = (observation.at_s + observations[number + 1].at_s) / 2 if number + 1 < len(observations) else end_s
        seconds = min(until_s, end_s) - max(since_s, start_s)
        if observation.is_idle and seconds > 0:
            times.append((observation.activity, seconds))
    return times


def _activity(frame: FrameType | None) -> str:
    """The innermost function of this project in a stack, with its line, and the innermost function of all modules."""
    innermost = frame
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith(_PROJECT_MODULES):
        frame = frame.f_back
    if frame is None or innermost is None:
        return "no code of this project"
    name = f"{_name(frame)}:{frame.f_lineno}"
    return name if frame is innermost else f"{name} in {_name(innermost)}"


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
