"""Several machines on this one: network namespaces with an address each, which share the files."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

_PREFIX = "10.77.0"


@dataclass
class Machine:
    """A network namespace, and the processes that were started in it."""

    name: str
    address: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, command: Sequence[str], cwd: Path, **variables: str) -> subprocess.Popen[str]:
        """Start a process. Its errors are in its output."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            cwd=cwd,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def fail(self) -> None:
        """Cut its cable, so that no connection is closed, and kill its processes."""
        _ip("-n", self.name, "link", "set", "eth0", "down")
        self.kill()

    def kill(self) -> None:
        """Kill all processes in the namespace."""
        for pid in _ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), SIGKILL)


def why_not() -> str | None:
    """Why there can be no machines here; None if there can be."""
    if shutil.which("ip") is None:
        return "needs the command ip: apt-get install iproute2"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return None if probe.returncode == 0 else f"needs permission for network namespaces: {probe.stderr.strip()}"


@contextmanager
def network(count: int) -> Iterator[list[Machine]]:
    """Connected machines. All their processes and namespaces are gone at the end."""
    unique = secrets.token_hex(3)  # names of links have at most 15 characters
    bridge = f"fx{unique}b"
    machines = [Machine(f"fx{unique}-{number}", f"{_PREFIX}.{number + 1}") for number in range(count)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for number, machine in enumerate(machines):
            cable = f"fx{unique}v{number}"
            _ip("netns", "add", machine.name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
            _ip("link", "set", cable, "master", bridge, "up")
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip("-n", machine.name, "link", "set", "eth0", "up")
        yield machines
    finally:
        for machine in machines:
            with suppress(subprocess.CalledProcessError):
                machine.kill()
                _ip("netns", "delete", machine.name)
            for process in machine.processes:
                process.communicate()
        with suppress(subprocess.CalledProcessError):
            _ip("link", "delete", bridge)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
