"""Read which rank this process is from the environment variables that a launcher sets.

This is the only module that reads RANK, WORLD_SIZE, LOCAL_*, MASTER_*, TORCHELASTIC_* and SLURM_* variables. It does
not import torch, so that the command line and the config checks can use it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Self

from fluxexp.errors import ConfigError, Problem

_LAUNCHERS = "start with `torchrun`, `accelerate launch`, `srun`, or without a launcher"
_MAX_PORT = 65535
_OF_LAUNCHER = re.compile(
    r"RANK|WORLD_SIZE|(LOCAL|GROUP|ROLE)_(RANK|WORLD_SIZE|NAME)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+"
)
_FIRST_PORT, _NUM_PORTS = 15000, 15000
"""Ports for jobs of Slurm, below those that Linux gives to outgoing connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnvironment:
    """The place of this process among the processes of one launch."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_world_size: int = 1
    """Processes on this machine."""
    has_launcher_store: bool = False
    """Whether the launcher's own process keeps the TCPStore. If not, rank 0 has to keep it (`srun`, Kubernetes)."""
    is_slurm_task: bool = False
    """Whether `srun` started this process, and no other launcher."""
    master_addr: str | None = None
    """Host of the TCPStore. Always set if there are several processes."""
    master_port: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read and validate the launcher's variables. A variable that is missing or empty has its default.

        A process that `srun` started has variables of Slurm only. They count if RANK is missing.

        Args:
            environment: the variables; `os.environ` if None.

        Raises:
            ConfigError: a value is not an integer or out of range, or several processes have no master address.
        """
        given = os.environ if environment is None else environment
        of_slurm = slurm_variables(given)
        reader = _Reader({**of_slurm, **{key: value for key, value in given.items() if value}})
        world_size = reader.integer("WORLD_SIZE", 1, minimum=1)
        rank = reader.integer("RANK", 0, below=("WORLD_SIZE", world_size))
        # A launcher that does not set this runs all its processes on one machine.
        local_world_size = reader.integer("LOCAL_WORLD_SIZE", world_size, minimum=1)
        if local_world_size > world_size:
            reader.reject("LOCAL_WORLD_SIZE", f"must not exceed WORLD_SIZE={world_size}")
        default_local_rank = rank % max(1, local_world_size)
        local_rank = reader.integer("LOCAL_RANK", default_local_rank, below=("LOCAL_WORLD_SIZE", local_world_size))
        result = cls(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            has_launcher_store=reader.text("TORCHELASTIC_USE_AGENT_STORE") == "True",
            is_slurm_task=bool(of_slurm),
            master_addr=reader.text("MASTER_ADDR"),
            master_port=reader.port("MASTER_PORT") if world_size > 1 else None,
        )
        if world_size > 1 and result.master_addr is None:
            reader.reject("MASTER_ADDR", f"must name the host of rank 0, because WORLD_SIZE={world_size}")
        if reader.problems:
            raise ConfigError(reader.problems)
        return result

    def publish(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Set the variables that Accelerate and torch read, as `torchrun` does. Needed after `srun`.

        Args:
            environment: where to set them; `os.environ` if None.
        """
        target = os.environ if environment is None else environment
        target["RANK"], target["WORLD_SIZE"] = str(self.rank), str(self.world_size)
        target["LOCAL_RANK"], target["LOCAL_WORLD_SIZE"] = str(self.local_rank), str(self.local_world_size)
        if self.master_addr is not None:
            target["MASTER_ADDR"] = self.master_addr
        if self.master_port is not None:
            target["MASTER_PORT"] = str(self.master_port)

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without the variables that `torchrun` and `accelerate launch` set, for a launch of its own."""
    return {name: value for name, value in environment.items() if not _OF_LAUNCHER.fullmatch(name)}


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `torchrun` for a task of `srun`; none without several tasks, or if a launcher has set RANK.

    Slurm also sets SLURM_PROCID in batch scripts. Only a task of `srun` has SLURM_STEP_NUM_TASKS.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if environment.get("RANK") or not environment.get("SLURM_PROCID") or tasks in ("", "1"):
        return {}
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", ""),
        "MASTER_ADDR": _first_host(environment),
        "MASTER_PORT": _port_of_step(environment),
    }
    counts = _tasks_by_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = environment.get("SLURM_NODEID", "0")
    if node.isdigit() and int(node) < len(counts):
        found["LOCAL_WORLD_SIZE"] = str(counts[int(node)])
    return {key: value for key, value in found.items() if value}


def _first_host(environment: Mapping[str, str]) -> str:
    """The host of rank 0: the first one of `gpu[07-09,12],cpu1`. Empty if Slurm does not say it."""
    if environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "localhost"
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)  # a comma in brackets does not end a host
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group()) if first else ""


def _port_of_step(environment: Mapping[str, str]) -> str:
    """A port that all tasks of a step compute. Jobs and steps that share a host nearly always have other ones."""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "0")
    if not (job.isdigit() and step.isdigit()):
        return ""
    return str(_FIRST_PORT + (int(job) * 7 + int(step)) % _NUM_PORTS)


def _tasks_by_node(text: str) -> list[int]:
    """Number of tasks on each node, from `4(x2),3`. Empty if it cannot be read."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


class _Reader:
    """Reads variables and collects every problem, so that one attempt shows them all."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[Problem] = []

    def text(self, key: str) -> str | None:
        return self._environment.get(key) or None

    def integer(self, key: str, default: int, *, minimum: int = 0, below: tuple[str, int] | None = None) -> int:
        text = self.text(key)
        if text is None:
            return default
        try:
            value = int(text)
        except ValueError:
            self.reject(key, "must be an integer")
            return default
        if value < minimum:
            self.reject(key, f"must be at least {minimum}")
            return default
        if below is not None and value >= below[1]:
            self.reject(key, f"must be less than {below[0]}={below[1]}")
        return value

    def port(self, key: str) -> int:
        port = self.integer(key, 0)
        if not self.problems and not 0 < port <= _MAX_PORT:
            reason = f"must be the port of the launcher's store, 1 to {_MAX_PORT}, if WORLD_SIZE is above 1"
            # torchrun takes a free port, and tells its processes that it is 0. `accelerate launch` tells them the port.
            hint = "; with torchrun, use `--standalone` in place of `--master-port 0`" if self.text(key) == "0" else ""
            self.reject(key, reason, hint)
        return port

    def reject(self, key: str, reason: str, hint: str = "") -> None:
        self.problems.append(Problem(key, reason, self.text(key), f"environment variable: {_LAUNCHERS}{hint}"))
