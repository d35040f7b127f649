"""What one rank measures during a session: totals of its events and tasks, device readings, and the result of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.experiment.session_messages import RankResult
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.telemetry import DeviceSampler, Event, RankTotals, part_of_run


class RankMeasurement:
    """Totals of one rank, of the whole session and of each run. Several threads may use it.

    Args:
        topology: of this rank.
        num_runs: runs of the session.
        is_sweep: whether events say to which runs they belong.
    """

    def __init__(self, topology: Topology, num_runs: int, *, is_sweep: bool) -> None:
        self._topology = topology
        self._is_sweep = is_sweep
        self._totals = RankTotals()
        self._run_totals = [RankTotals() for _ in range(num_runs)]
        self.sampler = DeviceSampler.of(topology.device_uuid)
        self.num_stolen = 0
        self.run_errors: dict[int, str] = {}
        """Errors by number of the run."""
        self._applied: dict[int, list[str]] = {}
        self._skipped: dict[int, dict[str, str]] = {}
        self._finished_s: float | None = None

    def add(self, event: Event) -> None:
        """Add an event to the totals of the session, and its parts to those of the runs. A listener of `EventLog`."""
        self._totals.add(event)
        for number, totals in enumerate(self._run_totals):
            part = part_of_run(event, number) if self._is_sweep else event
            if part is not None:
                totals.add(part)

    def count(self, number: int, record: Record) -> None:
        """Count the outcome of a task of run `number`."""
        for totals in (self._totals, self._run_totals[number]):
            totals.count(images=int(record.status == "ok"), failed=int(record.status == "failed"))

    def set_optimizations(self, runs: Sequence[int], applied: list[str], skipped: dict[str, str]) -> None:
        """Set which optimizations `runs` use, and why others were skipped."""
        self._applied |= dict.fromkeys(runs, applied)
        self._skipped |= dict.fromkeys(runs, skipped)

    def finish(self) -> None:
        """Set the time at which this rank has no more work."""
        self._finished_s = time.time()

    def figures(self) -> dict[str, Any]:
        """Totals and device readings so far, for a heartbeat."""
        reading = self.sampler.latest()
        return {
            **self._totals.snapshot(),
            "utilisation": reading.utilization if reading else None,
            "memory_gib": reading.memory_gib if reading else None,
            "finished_s": self._finished_s,
        }

    def result(self, error: str | None) -> RankResult:
        """The result of this rank. `error` ended its work, if it is not None."""
        peak_gib = self._topology.peak_memory_gib()
        device = self.sampler.figures()
        common = {
            "rank": self._topology.rank,
            "device": self._topology.device_name,
            **device,
            "memory_peak_gib": peak_gib if peak_gib is not None else device["memory_peak_gib"],
            "finished_s": self._finished_s,
        }
        totals = self._totals.snapshot()
        return RankResult(
            figures={**common, **totals, "num_stolen": self.num_stolen},
            error=error,
            runs=tuple(
                self._run_figures(number, common, device["energy_j"], totals["busy_s"])
                for number in range(len(self._run_totals))
            ),
        )

    def _run_figures(
        self, number: int, common: Mapping[str, Any], energy_j: float | None, busy_s: float
    ) -> dict[str, Any]:
        totals = self._run_totals[number].snapshot()
        return {
            **common,
            **totals,
            "energy_j": _part(energy_j, totals["busy_s"], busy_s),
            "num_stolen": None,
            "applied_optimizations": self._applied.get(number, []),
            "skipped_optimizations": self._skipped.get(number, {}),
            "error": self.run_errors.get(number),
        }


def _part(whole: float | None, part_s: float, whole_s: float) -> float | None:
    """A run's part of a device's energy, in proportion to the busy time."""
    return whole * part_s / whole_s if whole is not None and whole_s > 0 else None


def no_result(topology: Topology, error: str) -> RankResult:
    """The result of a rank that could not begin to work."""
    figures = {
        **RankTotals().snapshot(),
        "rank": topology.rank,
        "device": topology.device_name,
        **DeviceSampler.of(None).figures(),
        "finished_s": time.time(),
        "num_stolen": 0,
    }
    return RankResult(figures=figures, error=error)
