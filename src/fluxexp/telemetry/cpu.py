"""Looks at this process on the CPU, through psutil."""

from __future__ import annotations

import time

import psutil

from fluxexp.telemetry.reading import GIB, Reading


class CpuProbe:
    """CPU share and resident memory of this process, all threads included.

    Utilisation is CPU seconds used / wall seconds / cores this process may use, since the reading before; so the
    first reading has none.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._last: tuple[float, float] | None = None

    def read(self) -> Reading:
        """Look once."""
        return Reading(utilisation=self._utilisation(), memory_gib=self._process.memory_info().rss / GIB)

    def close(self) -> None:
        """Nothing to let go of."""

    def _utilisation(self) -> float | None:
        times = self._process.cpu_times()
        cpu_s, wall_s = times.user + times.system, time.monotonic()
        last, self._last = self._last, (cpu_s, wall_s)
        if last is None or wall_s <= last[1]:
            return None
        share = (cpu_s - last[0]) / (wall_s - last[1]) / _usable_cores(self._process)
        return float(min(1.0, max(0.0, share)))


def _usable_cores(process: psutil.Process) -> int:
    """Cores in the process's affinity mask, where there is one (not on macOS); else all."""
    if hasattr(process, "cpu_affinity"):
        return len(process.cpu_affinity())
    return psutil.cpu_count() or 1
