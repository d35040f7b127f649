"""A fast launcher for tests: one process imports all libraries once, and each launch forks it.

Imports take most of the time of a launch, and most tests only check the results of a run. Everything else is as with a
real launcher: separate processes, its environment variables, its store, and an end of all ranks when one fails. Tests
of start-up and launchers use real processes (`Program.start`, or `launcher=`). So does one test of each kind of signal.
Tests that need a GPU do, too: a forked process cannot use CUDA, so it sees no GPU.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

_ENDS_WITHIN_S = 30.0
"""Time in which the other ranks must end after one failed."""
_LOOK_S = 0.01
PATCH = "FLUXEXP_TESTS_PATCH"
"""Environment variable with a Python file that each rank runs before fluxexp, to break something."""
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


class WarmProcess:
    """A launch in work. It has the methods of `subprocess.Popen` that tests use, and ends as a context.

    Its output goes to files: nobody has to read a pipe, and a process that the test has stopped blocks nobody.
    """

    def __init__(self, launcher: WarmLauncher, pid: int, stdout: Path, stderr: Path) -> None:
        self._launcher = launcher
        self._stdout, self._stderr = stdout, stderr
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        if self.returncode is None:
            self.returncode = self._launcher.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fluxexp", timeout, self._stdout.read_text(), self._stderr.read_text())
            time.sleep(_LOOK_S)
        return code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end. Returns stdout and stderr; both are the same text if they go to one file."""
        self.wait(timeout)
        return self._stdout.read_text(), self._stderr.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill the process and its group if it still runs, and remove the files with its output."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.kill()  # also if it has no group of its own yet
            self.wait(_ENDS_WITHIN_S)
        for file in {self._stdout, self._stderr}:
            file.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class WarmLauncher:
    """The client of the process that is forked for each launch."""

    def __init__(self, *, guarded: bool = False) -> None:
        """With `guarded`, the process has only the command line, and a launch ends where it imports torch or wandb."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", *(["guarded"] if guarded else [])],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _NO_GPU,
        )
        self._num_launches = 0
        atexit.register(self._close)

    def _close(self) -> None:
        self._server.kill()
        self._server.communicate()

    def ask(self, request: dict[str, Any]) -> Any:
        """The answer of the server."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        cwd: Path,
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
        *,
        module: str = "fluxexp",
        is_one_output: bool = False,
    ) -> WarmProcess:
        """Start `python -m MODULE`. With `is_one_output`, stderr goes where stdout goes."""
        self._num_launches += 1
        stdout, stderr = (cwd / f".{name}-of-launch-{self._num_launches}" for name in ("stdout", "stderr"))
        stderr = stdout if is_one_output else stderr
        launch = {"arguments": list(arguments), "cwd": str(cwd), "processes": processes, "module": module}
        files = {"stdout": str(stdout), "stderr": str(stderr)}
        variables = {**os.environ, **(environment or {}), **_NO_GPU}
        for file in {stdout, stderr}:
            file.touch()
        pid = self.ask({"launch": {**launch, **files, "environment": variables}})
        return WarmProcess(self, pid, stdout, stderr)

    def run(
        self, arguments: Sequence[str], cwd: Path, processes: int, timeout_s: float, *, module: str = "fluxexp"
    ) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `python -m MODULE` in `processes` processes; code -9 after a timeout."""
        with self.start(arguments, cwd, processes, module=module) as process:
            try:
                stdout, stderr = process.communicate(timeout_s)
            except subprocess.TimeoutExpired as late:
                return -signal.SIGKILL, str(late.output), str(late.stderr)
            return process.wait(0), stdout, stderr


def import_libraries() -> None:
    """Import all that a launch needs, for the processes that are forked later."""
    import accelerate  # noqa: F401

    import fluxexp.cli
    import fluxexp.experiment.session
    import fluxexp.models.loading.pipeline_loader  # noqa: F401


class _Guard:
    """Finds no module, and ends a process that imports a library that checks of a command must not need."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ("torch", "diffusers", "transformers", "accelerate", "wandb"):
            print(f"imported {name}", file=sys.stderr, flush=True)
            raise SystemExit(1)


def _serve(*, guarded: bool) -> None:
    if guarded:
        sys.meta_path.insert(0, _Guard())
        import fluxexp.cli  # noqa: F401
    else:
        import_libraries()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            number, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if number else None
        else:
            answer = forked(lambda launch=request["launch"]: _launch(**launch))
        print(json.dumps(answer), flush=True)


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


def _launch(
    arguments: Sequence[str],
    cwd: str,
    processes: int,
    module: str,
    environment: dict[str, str],
    stdout: str,
    stderr: str,
) -> int:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment, PYTHONUNBUFFERED="1")
    for target, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if module != "fluxexp":
        return _be_module(module, arguments)
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


def _be_module(module: str, arguments: Sequence[str]) -> int:
    """Run another command of fluxexp, which may return or exit. Returns its exit code."""
    sys.argv = [module, *arguments]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    return code if isinstance(code, int) else int(code is not None)


def be_fluxexp(arguments: Sequence[str]) -> NoReturn:
    """Run the program in this process, which then ends."""
    sys.argv = ["fluxexp", *arguments]
    if patch := os.environ.get(PATCH):
        runpy.run_path(patch)
    runpy.run_module("fluxexp", run_name="__main__", alter_sys=True)
    raise AssertionError("fluxexp exits the process")


if __name__ == "__main__":
    _serve(guarded="guarded" in sys.argv)
