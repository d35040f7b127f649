"""Runs of the whole program in processes of their own, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxexp.records import Record
from fluxexp.storage.manifest import merge, read_attempts

FAKE = ("model=fake", "dataset.height=32", "dataset.width=32", "metrics=none", "report=off", "tracking=disabled")
"""A run of mechanics alone: starts in two seconds."""
TINY = ("dataset.height=64", "dataset.width=64", "sampling.steps=2", "metrics=none", "report=off", "tracking=disabled")
"""A run of a real network."""


@dataclass(frozen=True)
class Done:
    """A process that has ended, and the directory of its run."""

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
        return merge(read_attempts(self.directory / "manifest"))

    @property
    def attempts(self) -> list[Record]:
        return list(read_attempts(self.directory / "manifest"))

    @property
    def images(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted((self.directory / "images").iterdir())}


@dataclass(frozen=True)
class Sweep(Done):
    """A process that made a sweep, and the sweep's directory."""

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.directory / "sweep.json").read_text())
        return summary

    def run(self, *overrides: str) -> Done:
        """The run of the point for which this was typed, besides what holds for all."""
        (point,) = [p for p in self.summary["points"] if set(overrides) <= set(p["overrides"])]
        return Done(self.returncode, self.stdout, self.stderr, self.directory.parent / point["directory"])


class Program:
    """Starts fluxexp in `cwd`."""

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

    def run(self, *arguments: str, processes: int = 1, launcher: str = "torchrun", root: str = "outputs") -> Done:
        before = self.directories(root)
        with self.start(*arguments, processes=processes, launcher=launcher) as process:
            stdout, stderr = process.communicate(timeout=100)
        made = self.directories(root) - before or self.directories(root)
        assert made, stderr
        directory = max(made, key=lambda path: path.stat().st_mtime)
        return Done(process.returncode, stdout, stderr, directory)

    def sweep(self, *arguments: str, processes: int = 1, launcher: str = "torchrun") -> Sweep:
        with self.start("-m", *arguments, processes=processes, launcher=launcher) as process:
            stdout, stderr = process.communicate(timeout=100)
        made = self.directories("multirun", sweeps=True)
        assert made, stderr
        directory = max(made, key=lambda path: (path / "sweep.json").stat().st_mtime)
        return Sweep(process.returncode, stdout, stderr, directory)

    def directories(self, root: str = "outputs", *, sweeps: bool = False) -> set[Path]:
        """Of runs, or of sweeps."""
        return {path for path in (self.cwd / root).glob("*-*") if ("-sweep-" in path.name) == sweeps}
