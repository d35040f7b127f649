"""Accumulates the readings of a device. The caller passes the times and protects it from concurrent use."""

from __future__ import annotations

from dataclasses import dataclass

from fluxexp.telemetry.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """Summary of the readings of one device. None: unknown. Means are since the start or the last `restart_means`."""

    utilization_mean: float | None = None
    """0..1; see `Reading.utilization`."""
    sm_activity_mean: float | None = None
    """0..1; see `Reading.sm_activity`."""
    tensor_activity_mean: float | None = None
    """0..1; see `Reading.tensor_activity`."""
    power_mean_w: float | None = None
    """Watts."""
    energy_j: float | None = None
    """Joules since the start, loading and warm-up included: from the device's counter, else from its power."""
    temperature_peak_c: float | None = None
    """Highest temperature of all readings, in degrees Celsius."""
    throttle_reasons: tuple[str, ...] = ()
    """Sorted names of the reasons for reduced clocks in all readings; empty on a CPU."""
    memory_peak_gib: float | None = None
    """Largest memory of all readings, in GiB; see `Reading.memory_gib`."""


class RunningMean:
    """Mean of the known values; None if there are none."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def add(self, value: float | None) -> None:
        """Add one value; None is ignored."""
        if value is not None:
            self._sum += value
            self._count += 1

    def value(self) -> float | None:
        """The mean so far."""
        return self._sum / self._count if self._count else None


class Energy:
    """Joules since the first reading, from the device's counter or, if it has none, from its power.

    Power is integrated by the trapezoidal rule between the readings with a known power. The counter also counts while
    readings fail. If it decreases, because the device was reset, that step counts as zero.
    """

    def __init__(self) -> None:
        self._counter_j: float | None = None
        self._counted_j: float | None = None
        self._power: tuple[float, float] | None = None
        self._integrated_j: float | None = None

    def add(self, reading: Reading, at_s: float) -> None:
        """Add one reading, made at `at_s` seconds of a monotonic clock."""
        if reading.energy_j is not None:
            self._count(reading.energy_j)
        if reading.power_w is not None:
            self._integrate(reading.power_w, at_s)

    def value_j(self) -> float | None:
        """Joules so far; None before two readings with a known counter, or with a known power."""
        return self._counted_j if self._counted_j is not None else self._integrated_j

    def _count(self, counter_j: float) -> None:
        if self._counter_j is not None:
            self._counted_j = (self._counted_j or 0.0) + max(0.0, counter_j - self._counter_j)
        self._counter_j = counter_j

    def _integrate(self, power_w: float, at_s: float) -> None:
        if self._power is not None:
            before_w, before_s = self._power
            self._integrated_j = (self._integrated_j or 0.0) + (before_w + power_w) / 2 * (at_s - before_s)
        self._power = power_w, at_s


class Tally:
    """Summary of all readings of one device: means since the last `restart_means`, the other values since the start."""

    def __init__(self) -> None:
        self._energy = Energy()
        self._peak_memory_gib: float | None = None
        self._peak_temperature_c: float | None = None
        self._throttle_reasons: set[str] = set()
        self.restart_means()

    def restart_means(self) -> None:
        """Start the means again."""
        self._utilization, self._sm_activity, self._tensor_activity, self._power_w = (
            RunningMean(),
            RunningMean(),
            RunningMean(),
            RunningMean(),
        )

    def add(self, reading: Reading, at_s: float) -> None:
        """Add one reading, made at `at_s` seconds of a monotonic clock."""
        self._utilization.add(reading.utilization)
        self._sm_activity.add(reading.sm_activity)
        self._tensor_activity.add(reading.tensor_activity)
        self._power_w.add(reading.power_w)
        self._energy.add(reading, at_s)
        self._peak_memory_gib = _larger(self._peak_memory_gib, reading.memory_gib)
        self._peak_temperature_c = _larger(self._peak_temperature_c, reading.temperature_c)
        self._throttle_reasons.update(reading.throttle_reasons or ())

    def figures(self) -> DeviceFigures:
        """The summary so far."""
        return DeviceFigures(
            utilization_mean=self._utilization.value(),
            sm_activity_mean=self._sm_activity.value(),
            tensor_activity_mean=self._tensor_activity.value(),
            power_mean_w=self._power_w.value(),
            energy_j=self._energy.value_j(),
            temperature_peak_c=self._peak_temperature_c,
            throttle_reasons=tuple(sorted(self._throttle_reasons)),
            memory_peak_gib=self._peak_memory_gib,
        )


def _larger(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)
