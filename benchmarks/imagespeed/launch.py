"""Starts the process of an engine with a time limit, and yields its messages. Does not import torch."""

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
"""Prefix of messages, as in `child.py`."""
_ERROR_LINES = 12
"""Lines of other output that become the error message if the process fails."""


def run_child(request: Mapping[str, Any], limit_s: float, cache: Path) -> Iterator[dict[str, Any]]:
    """Run an engine in its own process, and yield its messages.

    If the process fails or takes too long, the last message has the kind `error`.

    Args:
        request: argument of `child.main`, without `started_s`.
        limit_s: time limit in seconds. The messages before it still count.
        cache: directory for compiled code. It is empty for the first process of an engine.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "imagespeed.child", json.dumps({**request, "started_s": time.time()})],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(cache),
        start_new_session=True,
    )
    watchdog = threading.Timer(limit_s, _end, [process])
    watchdog.start()
    output: deque[str] = deque(maxlen=_ERROR_LINES)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(_MARK):
                yield json.loads(line.removeprefix(_MARK))
            else:
                output.append(line.rstrip())
        if process.wait() != 0:
            is_late = not watchdog.is_alive()
            error = f"stopped at the time limit of {limit_s:g} s (--limit)" if is_late else "\n".join(output)
            yield {"kind": "error", "error": error}
    finally:
        watchdog.cancel()
        _end(process)
        process.stdout.close()
        process.wait()


def _environment(cache: Path) -> dict[str, str]:
    """This process's environment, with this package on the path and `cache` as the directory for compiled code."""
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
    """End the process group: the process and the compiler processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
