"""What one rank measures during a session: totals of its events and tasks, device readings, and the result of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from fluxexp.experiment.session_messages import RankResult, RunPart
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.telemetry import DeviceFigures, DeviceSampler, Event, RankFigures, RankTotals, part_of_run


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
        self._error: str | None = None
        self._is_able = True
        self._lost: dict[str, str] = {}

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

    def lose(self, what: str, reason: str | None) -> None:
        """Note that `what` of the telemetry is incomplete, and why. The first reason counts; None is no loss."""
        if reason is not None:
            self._lost.setdefault(what, reason)

    def set_optimizations(self, runs: Sequence[int], applied: list[str], skipped: dict[str, str]) -> None:
        """Set which optimizations `runs` use, and why others were skipped."""
        self._applied |= dict.fromkeys(runs, applied)
        self._skipped |= dict.fromkeys(runs, skipped)

    def fail(self, runs: Sequence[int], error: str, *, is_able: bool) -> None:
        """Note the error that ended the work on `runs`. `is_able`: whether the rank can do more work."""
        self._error, self._is_able = error, self._is_able and is_able
        for run in runs:
            self.run_errors.setdefault(run, error)

    def figures(self) -> RankFigures:
        """Totals so far and the latest reading of the device, for a heartbeat."""
        reading = self.sampler.latest()
        return RankFigures(
            totals=self._totals.snapshot(),
            utilization=reading.utilization if reading else None,
            memory_gib=reading.memory_gib if reading else None,
            finished_s=self._finished_s,
        )

    def begin(self) -> None:
        """Note that a round begins: the rank is not idle any more."""
        self._finished_s = None

    def finish(self) -> RankResult:
        """The result of this rank after a round, with the figures of all its rounds."""
        self._finished_s = time.time()
        totals, device_figures = self._totals.snapshot(), self._device_figures()
        self.lose("device figures", self.sampler.error)
        return RankResult(
            rank=self._topology.rank,
            device=self._topology.device_name,
            finished_s=self._finished_s,
            totals=totals,
            device_figures=device_figures,
            num_stolen=self.num_stolen,
            error=self._error,
            is_able=self._is_able,
            lost_telemetry=dict(self._lost),
            runs=tuple(
                self._run_part(number, device_figures.energy_j, totals.busy_s)
                for number in range(len(self._run_totals))
            ),
        )

    def _device_figures(self) -> DeviceFigures:
        """The sampler's figures. Peak memory is that of torch's allocator if the device has one."""
        figures, peak_gib = self.sampler.figures(), None
        try:
            peak_gib = self._topology.peak_memory_gib()
        except Exception as error:  # a device that is lost
            self.lose("peak memory", f"{type(error).__name__}: {error}")
        return figures if peak_gib is None else replace(figures, memory_peak_gib=peak_gib)

    def _run_part(self, number: int, energy_j: float | None, busy_s: float) -> RunPart:
        """This rank's part of run `number`. `energy_j` and `busy_s` are those of the whole session."""
        totals = self._run_totals[number].snapshot()
        return RunPart(
            totals=totals,
            energy_j=_part(energy_j, totals.busy_s, busy_s),
            applied_optimizations=tuple(self._applied.get(number, ())),
            skipped_optimizations=self._skipped.get(number, {}),
            error=self.run_errors.get(number),
        )


def _part(whole: float | None, part_s: float, whole_s: float) -> float | None:
    """A run's part of a device's energy, in proportion to the busy time."""
    return whole * part_s / whole_s if whole is not None and whole_s > 0 else None
