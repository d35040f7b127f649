"""Samples a device in the background. Knows neither NVML nor psutil: the probes do (`nvml.py`, `cpu.py`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from fluxexp.telemetry.reading import Probe, Reading
from fluxexp.telemetry.tally import Tally


def open_probe(device_uuid: str | None) -> Probe:
    """The probe for the NVIDIA device with this UUID, or for this process on the CPU if None.

    Raises:
        ImportError, or an error of NVML: the device cannot be looked at.
    """
    if device_uuid is None:
        from fluxexp.telemetry.cpu import CpuProbe

        return CpuProbe()
    from fluxexp.telemetry.nvml import NvmlProbe

    return NvmlProbe(device_uuid)


class DeviceSampler:
    """Reads a device every `interval_s` seconds on a daemon thread, from `start` to `stop`, and once at the end.

    `open_device` runs on that thread, since opening a driver can take a while. No exception leaves the thread: `error`
    holds the text of the last one. A failed reading is tried again at the next interval, a failed opening is final.
    All methods but `start` and `stop` may be called from any thread.
    """

    def __init__(
        self,
        open_device: Callable[[], Probe],
        *,
        interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_device = open_device
        self._interval_s = interval_s
        self._clock = clock
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._latest: Reading | None = None
        self._tally = Tally()
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="device-sampler", daemon=True)

    @classmethod
    def of(cls, device_uuid: str | None, *, interval_s: float = 1.0) -> Self:
        """A sampler of the NVIDIA device with this UUID, or of this process on the CPU if None; not yet started."""
        return cls(lambda: open_probe(device_uuid), interval_s=interval_s)

    @property
    def error(self) -> str | None:
        """Text of the last thing that went wrong, for showing, or None."""
        return self._error

    def latest(self) -> Reading | None:
        """The newest reading; None before the first."""
        return self._latest

    def figures(self) -> dict[str, Any]:
        """What the readings came to, as JSON-able values taken at one moment; None is unknown.

        `utilisation_mean`, `sm_activity_mean`, `tensor_activity_mean` (0..1), `power_mean_w`
            means since the start or the last `restart_mean`.
        `energy_j`
            joules since the start, loading and warm-up included: by the device's counter, else integrated power.
        `temperature_peak_c`, `memory_peak_gib`
            largest in any reading.
        `throttle_reasons`
            names of all that held the clocks down in any reading, sorted; an empty list on a CPU.
        """
        with self._lock:
            return self._tally.figures()

    def restart_mean(self) -> None:
        """Forget all means so far: for the moment when loading and warm-up are over."""
        with self._lock:
            self._tally.restart_means()

    def start(self) -> Self:
        """Begin to sample."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread and wait for it, though not for a driver that hangs; safe to call again."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._interval_s + 5.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            probe = self._open_device()
        except Exception as error:
            self._note(error)
            return
        try:
            self._sample(probe)
        finally:
            try:
                probe.close()
            except Exception as error:
                self._note(error)

    def _sample(self, probe: Probe) -> None:
        while not self._stop.is_set():
            self._look(probe)
            self._stop.wait(self._interval_s)
        self._look(probe)  # or else the energy of the last interval would be missing

    def _look(self, probe: Probe) -> None:
        try:
            reading = probe.read()
        except Exception as error:
            self._note(error)
            self._latest = Reading()
            return
        with self._lock:
            self._latest = reading
            self._tally.add(reading, self._clock())

    def _note(self, error: Exception) -> None:
        self._error = f"{type(error).__name__}: {error}"
