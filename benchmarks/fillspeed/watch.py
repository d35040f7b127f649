"""How much of the time a device had nothing to do, and what the host was at meanwhile: looked at from a thread.

A profiler would see every kernel, but slows their launches, and with them what is to be measured. Asking a stream
whether it is done costs a microsecond.
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
_OURS = ("fluxexp", "fillspeed")


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    at_s: float
    """Seconds since the epoch."""
    is_idle: bool
    doing: str
    """What the watched thread was at, if the device was idle."""


class Watch:
    """Looks as often as it can while it is entered, at the device and at the thread that entered it.

    Args:
        is_idle: whether the device has nothing to do; called on another thread.
    """

    def __init__(self, is_idle: Callable[[], bool]) -> None:
        self._is_idle = is_idle
        self._looks: list[Look] = []
        self._error: Exception | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="watch", daemon=True)
        self._switch_s = sys.getswitchinterval()

    def waiting(self, start_s: float, end_s: float) -> tuple[float, list[tuple[str, float]]]:
        """Share of the time between two moments in which the device was idle, and seconds of it by what was done."""
        by_doing: dict[str, float] = {}
        for doing, seconds in idle_times(self._looks, start_s, end_s):
            by_doing[doing] = by_doing.get(doing, 0.0) + seconds
        return sum(by_doing.values()) / (end_s - start_s), sorted(by_doing.items(), key=lambda item: -item[1])

    def __enter__(self) -> Self:
        # A thread that computes gives way to this one after so long, and the host computes where the device waits.
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
                doing = _doing(sys._current_frames().get(watched)) if is_idle else ""
                self._looks.append(Look(now_s(), is_idle, doing))
                time.sleep(_PAUSE_S)
        except Exception as error:  # raised where the watch ends
            self._error = error


def idle_times(looks: Sequence[Look], start_s: float, end_s: float) -> list[tuple[str, float]]:
    """What was done, and for how many seconds, at each look between two moments that found the device idle.

    A look stands for the time that is nearer to it than to any other: they come late where the host is busy.
    """
    times = []
    for number, look in enumerate(looks):
        since_s = (looks[number - 1].at_s + look.at_s) / 2 if number else start_s
        until_s = (look.at_s + looks[number + 1].at_s) / 2 if number + 1 < len(looks) else end_s
        seconds = min(until_s, end_s) - max(since_s, start_s)
        if look.is_idle and seconds > 0:
            times.append((look.doing, seconds))
    return times


def _doing(frame: FrameType | None) -> str:
    """The function of this project that a thread is in, by line, and the innermost one if it is another."""
    innermost = frame
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith(_OURS):
        frame = frame.f_back
    if frame is None or innermost is None:
        return "nothing of this project's"
    name = f"{_name(frame)}:{frame.f_lineno}"
    return name if frame is innermost else f"{name} in {_name(innermost)}"


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
