"""A fast launcher for tests: one process imports all libraries once, and each launch forks it.

Imports take most of the time of a launch, and most tests only check the results of a run. Everything else is as with a
real launcher: separate processes, its environment variables, its store, and an end of all ranks when one fails. Tests
of start-up, launchers and signals use real launchers (`Program.start`, or `launcher=`). So do tests that need a GPU: a
forked process cannot use CUDA, so it sees no GPU.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_ENDS_WITHIN_S = 30.0
"""Time in which the other ranks must end after one failed."""
_LOOK_S = 0.01
PATCH = "FLUXEXP_TESTS_PATCH"
"""Environment variable with a Python file that each rank runs before fluxexp, to break something."""
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


class WarmLauncher:
    """The client of the process that is forked for each launch."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _NO_GPU,
        )
        atexit.register(self._close)

    def _close(self) -> None:
        self._server.kill()
        self._server.communicate()

    def run(self, arguments: Sequence[str], cwd: Path, processes: int, timeout_s: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `python -m fluxexp` in `processes` processes; code -9 after a timeout."""
        files = {name: str(cwd / f".{name}-of-launch") for name in ("stdout", "stderr")}
        request = {"arguments": list(arguments), "cwd": str(cwd), "processes": processes, "timeout_s": timeout_s}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request | files | {"environment": os.environ | _NO_GPU}) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        texts = [Path(file).read_text() for file in files.values()]
        for file in files.values():
            Path(file).unlink()
        return code, texts[0], texts[1]


def import_libraries() -> None:
    """Import all that a launch needs, for the processes that are forked later."""
    import accelerate  # noqa: F401

    import fluxexp.cli
    import fluxexp.experiment.session
    import fluxexp.models.loading.pipeline_loader  # noqa: F401


def _serve() -> None:
    import_libraries()
    for line in sys.stdin:
        request = json.loads(line)
        code = _waited_for(forked(lambda request=request: _launch(**request)), request["timeout_s"])
        print(code, flush=True)


def forked(work: Any) -> int:
    """Fork a process that runs `work` and exits with its result as exit code. Returns the process id."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _waited_for(number: int, timeout_s: float) -> int:
    """Wait for a process and return its exit code. After the timeout, kill its process group."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_LOOK_S)
    os.killpg(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return -signal.SIGKILL


def _launch(
    arguments: Sequence[str],
    cwd: str,
    processes: int,
    environment: dict[str, str],
    stdout: str,
    stderr: str,
    timeout_s: float,
) -> int:
    del timeout_s
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment, PYTHONUNBUFFERED="1")
    for target, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if processes == 1:
        be_fluxexp(arguments)
    return _launch_several(arguments, processes)


def _launch_several(arguments: Sequence[str], processes: int) -> int:
    """Like torchrun: if one rank fails, end the others and return 1."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    running = set()
    for rank in range(processes):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.add(forked(lambda: be_fluxexp(arguments)))
    store = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    failed, deadline = False, None
    while running:
        number, status = os.waitpid(-1, os.WNOHANG)
        if number in running:
            running.remove(number)
            if status and not failed:
                failed, deadline = True, time.monotonic() + _ENDS_WITHIN_S
                for other in running:
                    os.kill(other, signal.SIGTERM)
        elif deadline is not None and time.monotonic() > deadline:
            for other in running:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
        else:
            time.sleep(_LOOK_S)
    del store
    return int(failed)


def be_fluxexp(arguments: Sequence[str]) -> NoReturn:
    """Run the program in this process, which then ends."""
    sys.argv = ["fluxexp", *arguments]
    if patch := os.environ.get(PATCH):
        runpy.run_path(patch)
    runpy.run_module("fluxexp", run_name="__main__", alter_sys=True)
    raise AssertionError("fluxexp exits the process")


if __name__ == "__main__":
    _serve()
