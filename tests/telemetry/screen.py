"""A real pseudo-terminal, and what a person sees on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


def run_on_terminal(
    code: str, *, columns: int = 100, environment: Mapping[str, str] | None = None, errors: Path | None = None
) -> str:
    """What `code` writes to a terminal of this width, which is stdout and, without the file `errors`, stderr."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    variables |= {"TERM": "xterm-256color", **(environment or {})}
    with (errors or Path(os.devnull)).open("w") as file:
        stderr = terminal if errors is None else file.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=stderr, env=variables
        )
    os.close(terminal)
    data = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the last process has closed its side
            break
        if not part:
            break
        data += part
    os.close(main)
    assert process.wait(60) == 0, data.decode()
    return data.decode()


def screen_of(text: str, columns: int = 100) -> list[str]:
    """The lines on the screen, without empty ones at the end. A line that is too long wraps, as on a terminal."""
    lines, row, column = [""], 0, 0
    for match in _CONTROL.finditer(text):
        number, command, carriage_return, line_feed, letters = match.groups()
        if carriage_return:
            column = 0
        elif line_feed:
            row += 1
        elif command == "A":
            row = max(0, row - int(number or 1))
        elif command == "K":
            lines[row] = "" if number == "2" else lines[row][:column]
        for letter in letters or "":
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + letter + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]
