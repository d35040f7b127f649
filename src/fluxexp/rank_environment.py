"""Read which rank this process is from the environment variables that a launcher sets.

This is the only module that reads RANK, WORLD_SIZE, LOCAL_*, MASTER_* and TORCHELASTIC_* variables. It does
not import torch, so that the command line and the config checks can use it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from fluxexp.errors import ConfigError, Problem

_LAUNCHERS = "start with `torchrun`, `accelerate launch`, or without a launcher"
_MAX_PORT = 65535


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
    master_addr: str | None = None
    """Host of the TCPStore. Always set if there are several processes."""
    master_port: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read and validate the launcher's variables. A variable that is missing or empty has its default.

        Args:
            environment: the variables; `os.environ` if None.

        Raises:
            ConfigError: a value is not an integer or out of range, or several processes have no master address.
        """
        reader = _Reader(os.environ if environment is None else environment)
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
            master_addr=reader.text("MASTER_ADDR"),
            master_port=reader.port("MASTER_PORT") if world_size > 1 else None,
        )
        if world_size > 1 and result.master_addr is None:
            reader.reject("MASTER_ADDR", f"must name the host of rank 0, because WORLD_SIZE={world_size}")
        if reader.problems:
            raise ConfigError(reader.problems)
        return result

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0


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
