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
    memory_gib: float | None = None
    """GPU: memory used on the device by anyone. CPU: resident memory of this process."""
    power_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None


class Probe(Protocol):
    """A device that can be looked at."""

    def read(self) -> Reading:
        """Look once. An exception means that nothing could be read."""
        ...

    def close(self) -> None:
        """Let go of the device."""
        ...
