"""Reads the CPU use of this process, through psutil."""

from __future__ import annotations

import time

import psutil

from fluxexp.telemetry.reading import GIB, Reading


class CpuProbe:
    """Reads utilization and resident memory of this process, with all its threads.

    Utilization since the last reading: CPU seconds / wall seconds / number of cores that the process may use. It is
    None in the first reading.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last: tuple[float, float] | None = None

    def read(self) -> Reading:
        """Read once."""
        return Reading(utilization=self._utilization(), memory_gib=self._process.memory_info().rss / GIB)

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def _utilization(self) -> float | None:
        times = self._process.cpu_times()
        cpu_s, wall_s = times.user + times.system, time.monotonic()
        last, self._last = self._last, (cpu_s, wall_s)
        if last is None or wall_s <= last[1]:
            return None
        share = (cpu_s - last[0]) / (wall_s - last[1]) / _usable_cores(self._process)
        return float(min(1.0, max(0.0, share)))


def _usable_cores(process: psutil.Process) -> int:
    """Number of cores in the affinity mask of the process; all cores if there is no mask (macOS)."""
    if hasattr(process, "cpu_affinity"):
        return len(process.cpu_affinity())
    return psutil.cpu_count() or 1
