"""One bar on a terminal, drawn by rich. Messages of this process appear above it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import IO, Any, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from fluxexp.terminal import printing_above

_NAME_WIDTH = 10
_BAR_WIDTH = 24
_WIDTH_WITH_BAR = 80
_WIDTH_WITH_TIME = 56
"""A narrower terminal has no room for the bar, or for the elapsed time: the numbers are more important."""
_PER_S = 4.0


class LiveBar:
    """A bar with a state next to it. Use it as a context manager. Threads can call `update`.

    Args:
        stream: the terminal.
        name: left of the bar.
        total: items of the whole bar; None if unknown: then the bar only shows that work goes on.
        state: right of the bar.
    """

    def __init__(self, stream: TextIO, name: str, total: int | None, state: str) -> None:
        # The values of force_terminal and force_jupyter keep rich from guessing: the caller knows.
        self._console = _Console(
            file=cast("IO[str]", _Unbreakable(stream)),
            force_terminal=True,
            force_jupyter=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        width = self._console.width
        self._progress = Progress(
            _text("name", min_width=_NAME_WIDTH),
            *([BarColumn(_BAR_WIDTH)] if width >= _WIDTH_WITH_BAR else []),
            _text("state"),
            *([TimeElapsedColumn()] if width >= _WIDTH_WITH_TIME else []),
            console=self._console,
            refresh_per_second=_PER_S,
            redirect_stdout=True,
            redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),  # a file must get its lines
        )
        self._task = self._progress.add_task("", total=total, name=f"{name:<{_NAME_WIDTH}}", state=state)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(printing_above(self._print_above))
        self._open.enter_context(self._progress)
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.stop_task(self._task)
        self._open.close()

    def update(self, completed: int, total: int | None, state: str) -> None:
        """Show how many items are completed, and the state."""
        self._progress.update(self._task, completed=completed, total=total, state=state)

    def _print_above(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def _text(field: str, min_width: int | None = None) -> ProgressColumn:
    """A column with a field of the task. A terminal that is too narrow cuts it off, because a wrapped line jumps."""
    column = Column(no_wrap=True, overflow="ellipsis", min_width=min_width)
    return TextColumn(f"{{task.fields[{field}]}}", markup=False, table_column=column)


class _Console(Console):
    """A console that never hides the cursor: a process that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Unbreakable:
    """A stream whose errors are swallowed: if the terminal is closed, the run goes on without its display."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
