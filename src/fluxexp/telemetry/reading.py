"""One look at a device, and what can take it: the words that the sampler and its probes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a device. None is unknown: the device, its driver or the operating system would not say."""

    utilisation: float | None = None
    """0..1. GPU: share of the driver's sampling period with any kernel running. CPU: share of the usable cores."""
    sm_activity: float | None = None
    """0..1: share of the multiprocessors that were busy, since the reading before. Hopper and later."""
    tensor_activity: float | None = None
    """0..1: share of time that the multiprocessors' tensor cores were at work, since the reading before."""
    memory_gib: float | None = None
    """GPU: memory used on the device by anyone. CPU: resident memory of this process."""
    power_w: float | None = None
    energy_j: float | None = None
    """A counter that only grows, from a start that the driver chose: two readings' difference is what counts."""
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Short names of what holds the clocks down right now; empty if nothing does."""


class Probe(Protocol):
    """A device that can be looked at."""

    def read(self) -> Reading:
        """Look once. An exception means that nothing could be read."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...
