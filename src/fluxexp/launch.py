"""Starts the ranks of one launch on this machine, and waits for them. Imports no torch.

It is a launcher like `srun`, not like `torchrun`: the ranks need no process between them. Rank 0 keeps the store, and a
rank that dies does not end the others, which make its tasks. The exit code is that of rank 0, which knows how the run
ended; `torchrun` would make each failure a 1.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from fluxexp.errors import ConfigError, Problem
from fluxexp.interruption import ENDS_AT_ONCE, WARNINGS
from fluxexp.rank_environment import RankEnvironment, without_launcher
from fluxexp.visible_gpus import Ranks

Output = Callable[[str], None]
"""Gets each line that a rank prints, without the newline."""

_CONFIG_ERROR = ConfigError.exit_code
_OTHERS_END_S = 15.0
"""How long the other ranks may work after rank 0 has ended. Rank 0 waits for them before it ends in order."""
_TERMINATED_S = 30.0
"""How long a rank may save its work after SIGTERM, before it is killed."""
_POLL_S = 0.05
_MAX_LINE_BYTES = 1 << 20


def launch(
    arguments: Sequence[str],
    ranks: Ranks,
    *,
    output: Output | None = None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run `python -m fluxexp ARGUMENTS` on all ranks, and wait for their end.

    Signals that ask a program to stop (SIGINT, SIGTERM, SIGUSR1, SIGUSR2) are passed on to all ranks, if this is called
    in the main thread: the ranks save their work, and a second one ends them at once. No rank is left when this
    returns or raises.

    Args:
        arguments: overrides and options.
        ranks: how many, and on which GPUs. See `choose_ranks`.
        output: gets what all ranks print. None: they print on the terminal of this process.
        variables: added to the environment of the ranks.

    Returns:
        the exit code of rank 0 (docs/faults.md); 128 + N if signal N killed it.

    Raises:
        ConfigError: this process is itself one of several ranks.
    """
    refuse_inner_launch()
    environment = without_launcher(os.environ) | dict(ranks.environment) | dict(variables or {})
    return run_ranks([sys.executable, "-m", "fluxexp", *arguments], ranks.number, environment, output)


def run_ranks(command: Sequence[str], number: int, shared: Mapping[str, str], output: Output | None = None) -> int:
    """Run `command` as `number` ranks with the variables `shared`, as `launch` says. Returns the exit code."""
    reader = None if output is None else _LineReader(output)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with _passing_signals_to(processes):
            for environment in _environments(number, shared):
                processes.append(_start(command, environment, reader))
            _wait(processes, reader)
    finally:
        _end(processes)
        if reader is not None:
            reader.close()
    code = processes[0].returncode
    return code if code >= 0 else 128 - code


def refuse_inner_launch() -> None:
    """Raise ConfigError if a launcher has started several processes of this program: each would start all ranks."""
    if (world_size := RankEnvironment.from_environment().world_size) > 1:
        hint = "start this program without a launcher (python FILE): fluxexp starts its own ranks"
        raise ConfigError(Problem("number of processes", "a launcher has already started several", world_size, hint))


def _environments(number: int, shared: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each rank."""
    if number == 1:
        return [dict(shared)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(number):
        environment = {"OMP_NUM_THREADS": "1", **shared}  # as torchrun does: ranks must not fight for cores
        RankEnvironment(
            rank=rank,
            world_size=number,
            local_rank=rank,
            local_world_size=number,
            master_addr="localhost",
            master_port=port,
        ).publish(environment)
        found.append(environment)
    return found


def _start(
    command: Sequence[str], environment: Mapping[str, str], reader: _LineReader | None
) -> subprocess.Popen[bytes]:
    """Start a rank in the process group of this process, so that it gets what a terminal sends: Ctrl-C, a hang-up."""
    if reader is None:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    with reader.pipe() as end:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=end, stderr=subprocess.STDOUT
        )


def _wait(processes: Sequence[subprocess.Popen[bytes]], reader: _LineReader | None) -> None:
    """Wait for all ranks. When rank 0 has ended, the others may finish; then they are asked to end, and killed."""
    ask_s = kill_s = None
    while any(process.poll() is None for process in processes):
        now_s = time.monotonic()
        if ask_s is None and processes[0].poll() is not None:
            # All ranks find the same mistake in a config, and rank 0 has said it.
            ask_s = now_s + (0.0 if processes[0].returncode == _CONFIG_ERROR else _OTHERS_END_S)
        if ask_s is not None and kill_s is None and now_s >= ask_s:
            kill_s = now_s + _TERMINATED_S
            _send(processes, signal.SIGTERM)
        if kill_s is not None and now_s >= kill_s:
            _send(processes, signal.SIGKILL)
        if reader is None:
            time.sleep(_POLL_S)
        else:
            reader.read(_POLL_S)
    if reader is not None:
        while reader.read(0.0):
            pass


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the ranks that still run, because this process cannot wait for them any more."""
    _send(processes, signal.SIGTERM)
    deadline_s = time.monotonic() + _TERMINATED_S
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline_s:
            _send(processes, signal.SIGKILL)
        time.sleep(_POLL_S)


def _send(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        process.send_signal(number)  # does nothing if the process has ended


@contextmanager
def _passing_signals_to(processes: Sequence[subprocess.Popen[bytes]]) -> Generator[None]:
    """Within this context, signals that ask this process to stop go to `processes`, and do nothing else here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _: FrameType | None) -> None:
        _send(processes, number)

    wakeup = signal.set_wakeup_fd(-1)  # `interruption` would end this process at the second signal
    before = {number: signal.signal(number, pass_on) for number in (*ENDS_AT_ONCE, *WARNINGS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)


class _LineReader:
    """Reads the lines of all ranks. Each has a pipe of its own, so that lines do not mix."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._selector = selectors.DefaultSelector()
        self._rests: dict[int, bytes] = {}
        """The incomplete last line of each pipe, by its read end."""

    @contextmanager
    def pipe(self) -> Generator[int]:
        """The write end of a new pipe. This process closes it after the context, when a rank has it."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        self._selector.register(read_end, selectors.EVENT_READ)
        self._rests[read_end] = b""
        try:
            yield write_end
        finally:
            os.close(write_end)

    def read(self, timeout_s: float) -> bool:
        """Pass on the lines that are there, or that come within `timeout_s`. Whether something came."""
        if not self._rests:
            time.sleep(timeout_s)  # the ranks have closed their output, and still run
            return False
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            data = os.read(key.fd, 1 << 16)
            *lines, rest = (self._rests[key.fd] + data).split(b"\n")
            if not data or len(rest) > _MAX_LINE_BYTES:
                lines, rest = [*lines, *([rest] if rest else [])], b""
            self._rests[key.fd] = rest
            if not data:
                self._close(key.fd)
            for line in lines:
                self._output(line.decode("utf-8", "replace").rstrip("\r"))
        return bool(ready)

    def close(self) -> None:
        """Close the pipes that another process still holds, and pass on their incomplete last lines."""
        rests = [rest for rest in self._rests.values() if rest]
        for read_end in list(self._rests):
            self._close(read_end)
        self._selector.close()
        for rest in rests:
            self._output(rest.decode("utf-8", "replace"))

    def _close(self, read_end: int) -> None:
        self._selector.unregister(read_end)
        os.close(read_end)
        del self._rests[read_end]
