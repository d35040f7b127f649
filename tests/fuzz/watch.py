"""Watches this process: files that it changes outside of one folder, and programs that it starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_CHANGES = frozenset(
    {
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "shutil.rmtree",
    }
)
_PROGRAMS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn"})
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Collects what happened outside of `root`. An audit hook stays until the process ends."""

    def __init__(self, root: Path) -> None:
        self._root = f"{os.path.realpath(root)}/"
        self.found: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = bool(flags & _WRITES) if isinstance(flags, int) else any(c in str(mode) for c in "wax+")
            if writes and isinstance(path, (str, bytes)):
                self._check(event, path)
        elif event in _CHANGES:
            for path in args[: 2 if event in ("os.rename", "os.link") else 1]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._check(event, path)
        elif event in _PROGRAMS:
            self.found.append(f"{event} {args[:2]}")

    def _check(self, event: str, path: str | bytes | os.PathLike[str]) -> None:
        text = os.fsdecode(path)
        parent = os.path.realpath(os.path.dirname(os.path.abspath(text)))  # noqa: PTH120 (in an audit hook)
        if text != os.devnull and not f"{parent}/".startswith(self._root) and "__pycache__" not in text:
            self.found.append(f"{event} {text}")
