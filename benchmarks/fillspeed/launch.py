"""Starts each engine's process in turn, with a time limit, and hands on what it says. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_MARK = "@@"
_ERROR_LINES = 12


def run_child(order: Mapping[str, Any], limit_s: float, cache: Path) -> Iterator[dict[str, Any]]:
    """What the engine's process says, message by message; last of all `{"kind": "error"}` if it came to a bad end.

    Args:
        order: for `child.main`.
        limit_s: after so many seconds the process is ended; what it said until then counts.
        cache: where compiled code is kept: the first process of an engine finds it empty.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "fillspeed.child", json.dumps({**order, "started_s": time.time()})],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(cache),
        start_new_session=True,
    )
    watchdog = threading.Timer(limit_s, _end, [process])
    watchdog.start()
    said: deque[str] = deque(maxlen=_ERROR_LINES)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(_MARK):
                yield json.loads(line.removeprefix(_MARK))
            else:
                said.append(line.rstrip())
        if process.wait() != 0:
            late = not watchdog.is_alive()
            yield {"kind": "error", "error": f"stopped after {limit_s:g} s" if late else "\n".join(said)}
    finally:
        watchdog.cancel()
        _end(process)
        process.stdout.close()
        process.wait()


def _environment(cache: Path) -> dict[str, str]:
    """The own environment, with this package on the path and compiled code kept in `cache`."""
    own = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(own), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and the compilers it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
