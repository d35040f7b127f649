"""Who holds a run directory: the content of its `.lock`."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from typing import Self

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A session that holds a run."""

    host: str
    pid: int
    started_s: float
    """When the process was started, in seconds since the epoch: a process id is used again."""
    since: str
    """When the session claimed the run, in UTC."""
    token: str
    """Random name of the session in this folder of runs."""
    via: str
    """Name of the run beside this one whose `.lock` the session keeps locked."""
    has_kernel_lock: bool
    """Whether the session holds a lock of the kernel; if not, it renews the time of its file."""

    @classmethod
    def of_this_process(cls, token: str, *, via: str, has_kernel_lock: bool = True) -> Self:
        """This process, from now on."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started_s=_started_s(os.getpid()) or 0.0,
            since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            token=token,
            via=via,
            has_kernel_lock=has_kernel_lock,
        )

    @classmethod
    def parse(cls, content: bytes) -> Self | None:
        """The owner that `to_bytes` wrote; None if nobody holds the run, or the content is damaged."""
        try:
            values = json.loads(content)
            kinds = {"host": str, "pid": int, "started_s": float, "since": str, "token": str, "via": str}
            is_right = all(type(values[name]) is kind for name, kind in kinds.items())
            is_plain = is_right and "/" not in values["via"] and values["via"] not in (".", "..")
            if not is_plain or type(values["has_kernel_lock"]) is not bool:
                return None
            return cls(**{name: values[name] for name in (*kinds, "has_kernel_lock")})
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return None

    def to_bytes(self) -> bytes:
        """One line of JSON."""
        return f"{json.dumps(asdict(self))}\n".encode()

    @property
    def is_local(self) -> bool:
        """Whether the session runs on this host."""
        return self.host == socket.gethostname()

    @property
    def has_process(self) -> bool:
        """Whether its process still exists on this host."""
        started_s = _started_s(self.pid)
        return started_s is not None and abs(started_s - self.started_s) < 1.0

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}, since {self.since}"


def _started_s(pid: int) -> float | None:
    """When a process of this host was started; None if there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None
