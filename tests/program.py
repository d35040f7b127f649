"""Run the whole program in separate processes, and read the results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fluxexp.records import Record
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.manifest import merge, read_attempts
from fluxexp.telemetry import Event
from tests.warm import WarmLauncher, WarmProcess

FAKE = ("model=fake", "dataset.height=32", "dataset.width=32", "metrics=none", "report=off", "tracking=disabled")
"""A run with the fake model, which starts in two seconds."""
TINY = ("dataset.height=64", "dataset.width=64", "sampling.steps=2", "metrics=none", "report=off", "tracking=disabled")
"""A run with a tiny real network."""
_LIMIT_S = 100.0


def read_events(file: Path) -> list[Event]:
    """Events of one rank in one session."""
    return [Event.from_json(line) for line in file.read_text().splitlines()]


@dataclass(frozen=True)
class Done:
    """An ended process, and the directory of its run."""

    returncode: int
    stdout: str
    stderr: str
    directory: Path

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return summary

    @property
    def records(self) -> dict[str, Record]:
        return merge(self.attempts)

    @property
    def attempts(self) -> list[Record]:
        parsed = read_attempts(LocalStore(self.directory))
        assert parsed.damage == []
        return parsed.values

    @property
    def images(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted((self.directory / "images").iterdir())}


@dataclass(frozen=True)
class Sweep(Done):
    """An ended process that made a sweep, and the directory of the sweep."""

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.directory / "sweep.json").read_text())
        return summary

    def run(self, *overrides: str) -> Done:
        """The run of the point that has these overrides."""
        (point,) = [p for p in self.summary["points"] if set(overrides) <= set(p["overrides"])]
        return Done(self.returncode, self.stdout, self.stderr, self.directory.parent / point["directory"])


def free_port() -> int:
    """A port that no process of this machine uses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


@cache
def _warm_launcher() -> WarmLauncher:
    """One launcher for all tests of a process."""
    return WarmLauncher()


class Program:
    """Starts fluxexp in `cwd`, with the warm launcher, or with a real one if `launcher` names it."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd

    def command(self, *arguments: str, processes: int = 1, launcher: str = "torchrun") -> list[str]:
        program = ["-m", "fluxexp", *arguments]
        if processes == 1:
            return [sys.executable, *program]
        bin_directory = Path(sys.executable).parent
        if launcher == "accelerate":
            options = ["launch", "--multi_gpu", "--num_processes", str(processes), "--main_process_port", "0"]
            return [str(bin_directory / "accelerate"), *options, *program]
        options = ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        return [str(bin_directory / "torchrun"), *options, *program]

    def start(self, *arguments: str, processes: int = 1, launcher: str = "torchrun") -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments, processes=processes, launcher=launcher),
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    def start_warm(self, *arguments: str, processes: int = 1) -> WarmProcess:
        """Start the program with the warm launcher. The caller ends the process, or uses it as a context."""
        return _warm_launcher().start(arguments, self.cwd, processes)

    def start_ranks(
        self, *arguments: str, processes: int = 2, store: tuple[int, bool] | None = None
    ) -> list[WarmProcess]:
        """Start the processes of all ranks without a launcher, as `srun` and Kubernetes do: nothing ends the others.

        `store` is the port of the store, and whether a process of the test keeps it. By default rank 0 keeps it.
        The caller ends the processes. stderr is in their stdout.
        """
        port, is_kept = store or (free_port(), False)
        launch = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        launch |= {"PYTHONUNBUFFERED": "1", "TORCHELASTIC_USE_AGENT_STORE": str(is_kept)}
        return [
            _warm_launcher().start(arguments, self.cwd, environment=launch | {"RANK": str(rank)}, is_one_output=True)
            for rank in range(processes)
        ]

    def run_command(
        self, command: Sequence[str], environment: Mapping[str, str] = os.environ
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever it makes. For a run that makes nothing, or another environment."""
        return subprocess.run(
            command, cwd=self.cwd, env=dict(environment), capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )

    def run(self, *arguments: str, processes: int = 1, launcher: str | None = None, root: str = "outputs") -> Done:
        before = self.directories(root)
        returncode, stdout, stderr = self.ended(arguments, processes, launcher)
        made = self.directories(root) - before or self.directories(root)
        assert made, stderr
        directory = max(made, key=lambda path: path.stat().st_mtime)
        return Done(returncode, stdout, stderr, directory)

    def sweep(self, *arguments: str, processes: int = 1, launcher: str | None = None) -> Sweep:
        returncode, stdout, stderr = self.ended(("-m", *arguments), processes, launcher)
        made = self.directories("multirun", sweeps=True)
        assert made, stderr
        directory = max(made, key=lambda path: (path / "sweep.json").stat().st_mtime)
        return Sweep(returncode, stdout, stderr, directory)

    def ended(self, arguments: Sequence[str], processes: int = 1, launcher: str | None = None) -> tuple[int, str, str]:
        """Exit code, output and errors of a command that may make several directories, or none."""
        if launcher is None:
            return _warm_launcher().run(arguments, self.cwd, processes, _LIMIT_S)
        with self.start(*arguments, processes=processes, launcher=launcher) as process:
            stdout, stderr = process.communicate(timeout=_LIMIT_S)
        return process.returncode, stdout, stderr

    def run_module(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of fluxexp, like `fluxexp.score`, with the warm launcher."""
        code, stdout, stderr = _warm_launcher().run(arguments, self.cwd, 1, _LIMIT_S, module=module)
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)

    def directories(self, root: str = "outputs", *, sweeps: bool = False) -> set[Path]:
        """Directories of runs, or of sweeps."""
        return {path for path in (self.cwd / root).glob("*-*") if ("-sweep-" in path.name) == sweeps}
