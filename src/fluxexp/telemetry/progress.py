"""The progress display of a run, which rank 0 shows. The caller passes the totals of all ranks.

On a terminal it rewrites one line. Otherwise (log file, CI) it prints a line every few seconds.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

LINE_EVERY_S = 5.0
RECENT_S = 60.0
"""The remaining time is estimated from the rate over this period, so that a slow start does not count for long."""
_ERASE_REST_OF_LINE = "\x1b[K"


class Progress:
    """Shows `12/64 done · 3.1 images/s · ETA 0:17 · 1 failed` on `stream`.

    `total` is the number of tasks of the run, `resumed` the number that earlier sessions finished. If the stream breaks
    (for example a closed pipe), the display ends, but the run continues.
    """

    def __init__(
        self,
        total: int,
        resumed: int,
        stream: TextIO,
        is_terminal: bool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._resumed = resumed
        self._stream: TextIO | None = stream
        self._is_terminal = is_terminal
        self._clock = clock
        self._separator = _separator(stream)
        self._recent: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._printed_s: float | None = None
        self._pending: str | None = None

    def update(self, done: int, failed: int, images_per_s: float | None) -> None:
        """Show the numbers of tasks of this session that succeeded (`done`) and that failed (`failed`).

        `images_per_s` is the measured throughput of all ranks; None if it is unknown. The display leaves out unknown
        values.
        """
        now_s = self._clock()
        remaining_s = self._remaining_s(now_s, done + failed)
        parts = [
            f"{self._resumed + done}/{self._total} done",
            f"{_rate(images_per_s)} images/s" if images_per_s is not None else "",
            f"ETA {_duration(remaining_s)}" if remaining_s is not None else "",
            f"{failed} failed" if failed else "",
        ]
        self._pending = self._separator.join(part for part in parts if part)
        if self._is_terminal or self._printed_s is None or now_s - self._printed_s >= LINE_EVERY_S:
            self._printed_s = now_s
            self._show()

    def close(self) -> None:
        """Print the last state as a line of its own. Calling it again has no effect."""
        if self._is_terminal and self._printed_s is not None:
            self._write("\n")
        else:
            self._show()
        self._stream = None

    def _remaining_s(self, now_s: float, finished: int) -> float | None:
        """Seconds to the end at the recent rate; None if there is no rate yet, or no task is left."""
        self._recent.append((now_s, finished))
        while len(self._recent) > 2 and now_s - self._recent[1][0] >= RECENT_S:
            self._recent.popleft()
        then_s, then_finished = self._recent[0]
        left = self._total - self._resumed - finished
        if left <= 0 or finished <= then_finished or now_s <= then_s:
            return None
        return left * (now_s - then_s) / (finished - then_finished)

    def _show(self) -> None:
        line, self._pending = self._pending, None
        if line is None:
            return
        if self._is_terminal:
            # A wrapped line cannot be rewritten.
            self._write("\r" + line[: shutil.get_terminal_size().columns - 1] + _ERASE_REST_OF_LINE)
        else:
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None


def _separator(stream: TextIO) -> str:
    """A middle dot, or a hyphen if the stream's encoding has no middle dot."""
    try:
        "·".encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return " - "
    return " · "


def _rate(per_s: float) -> str:
    return f"{per_s:.0f}" if per_s >= 100 else f"{per_s:.2g}"


def _duration(seconds: float) -> str:
    """Format as M:SS, or as H:MM:SS from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
