"""The phases of a session on rank 0's terminal: loading, warming up, generating, scoring, report.

On a terminal each phase has a bar that rich rewrites. Otherwise (log file, CI, TERM=dumb) a phase is a line when it
begins, and at most one further line every `LINE_EVERY_S` seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, Self, TextIO

from fluxexp.telemetry.remaining_time import RemainingTime
from fluxexp.terminal import can_rewrite

PhaseName = Literal["loading", "warming up", "generating", "scoring", "report"]

LINE_EVERY_S = 10.0


class Phase:
    """One phase on `stream`, from its creation to `close`. If the stream breaks, the display ends, but the run goes on.

    Args:
        name: of the phase.
        what: what it works on, such as `images` of `12/64 images`, or the whole text if there is no number.
        total: number of items; None if there is nothing to count.
        done: number of items that are finished at the start. They do not count for the remaining time.
        stream: where to show it.
        is_live: whether lines of `stream` can be rewritten.
        clock: seconds that never decrease.
    """

    def __init__(
        self,
        name: PhaseName,
        what: str,
        total: int | None = None,
        done: int = 0,
        *,
        stream: TextIO | None = None,
        is_live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._name = name
        self._what = what
        self._total = total
        self._at_start = done
        self._clock = clock
        self._printed_s = clock()
        self._printed: str | None = None
        """The last state that was printed. The line at the start is none, so that a short phase has no other line."""
        self._remaining = RemainingTime(clock())
        self._separator = _separator(self._stream)
        self._state = what if total is None else f"{done}/{total} {what}"
        self._open = ExitStack()
        self._bar = None
        if can_rewrite(self._stream) if is_live is None else is_live:
            from fluxexp.telemetry.live_bar import LiveBar  # rich takes a tenth of a second

            self._bar = self._open.enter_context(LiveBar(self._stream, name, total, self._state))
        else:
            self._print(what if total is None else f"{total - done} {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> str:
        """What the display shows right of the name."""
        return self._state

    def update(
        self, done: int, *, failed: int = 0, per_s: float | None = None, total: int | None = None, note: str = ""
    ) -> None:
        """Show how far the phase is. Unknown values are left out, except for the remaining time.

        Args:
            done: number of items that succeeded, including those at the start.
            failed: number of items that failed in this phase.
            per_s: measured items per second; None if it is unknown.
            total: number of items if it has changed.
            note: further text.
        """
        self._total = self._total if total is None else total
        now_s = self._clock()
        whole = self._total
        parts = [self._what, note]
        if whole is not None:
            left = max(0, whole - done - failed)
            self._remaining.update(now_s, done + failed - self._at_start, left, per_s)
            parts = [
                f"{done}/{whole} {self._what}",
                f"{_rate(per_s)} {self._what}/s" if per_s is not None else "",
                f"ETA {_duration(self._remaining.seconds(now_s))}" if left else "",
                f"{failed} failed" if failed else "",
                note,
            ]
        self._state = self._separator.join(part for part in parts if part)
        if self._bar is not None:
            self._bar.update(done + failed, whole, self._state)
        elif now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s, self._printed = now_s, self._state
            self._print(self._state)

    def close(self) -> None:
        """End the phase: its last state stays on the terminal. Calling it again has no effect."""
        self._open.close()
        if self._printed not in (None, self._state):
            self._print(self._state)
        self._bar, self._stream, self._printed = None, None, None

    def _print(self, state: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(f"{self._name:<10} {state}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None


def _separator(stream: TextIO | None) -> str:
    """A middle dot, or a hyphen if the stream's encoding has no middle dot."""
    try:
        "·".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return " - "
    return " · "


def _rate(per_s: float) -> str:
    return f"{per_s:.0f}" if per_s >= 100 else f"{per_s:.2g}"


def _duration(seconds: float | None) -> str:
    """Format as M:SS, or as H:MM:SS from one hour on."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
