"""One reading of a device, and the interface of the probes that take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading of a device. None: the device, its driver or the operating system does not know the value."""

    utilization: float | None = None
    """0..1. GPU: share of the driver's sampling period in which any kernel ran. CPU: share of the usable cores."""
    sm_activity: float | None = None
    """0..1: share of the multiprocessors that were busy since the last reading. Hopper and later."""
    tensor_activity: float | None = None
    """0..1: share of time in which the tensor cores worked since the last reading. Hopper and later."""
    memory_gib: float | None = None
    """GPU: memory in use on the device, by all processes. CPU: resident memory of this process."""
    power_w: float | None = None
    energy_j: float | None = None
    """Counter in joules. Only the difference of two readings has a meaning."""
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Short names of the reasons why the clocks are reduced now; empty if they are not."""


class Probe(Protocol):
    """A device that can be read."""

    def read(self) -> Reading:
        """Read once. It raises an exception if no value can be read."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...
