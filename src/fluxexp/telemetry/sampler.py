"""Samples a device in the background. Knows neither NVML nor psutil: the probes do (`nvml.py`, `cpu.py`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from fluxexp.telemetry.reading import Probe, Reading


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
    """Reads a device every `interval_s` seconds on a daemon thread, from `start` to `stop`.

    `open_device` runs on that thread, since opening a driver can take a while. No exception leaves the thread: `error`
    holds the text of the last one. A failed reading is tried again at the next interval, a failed opening is final.
    """

    def __init__(self, open_device: Callable[[], Probe], *, interval_s: float = 1.0) -> None:
        self._open_device = open_device
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._latest: Reading | None = None
        self._sum_utilisation = 0.0
        self._num_utilisation = 0
        self._peak_memory_gib: float | None = None
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

    def mean_utilisation(self) -> float | None:
        """Mean of the known utilisations, 0..1, since the start or the last `restart_mean`; None if there are none."""
        with self._lock:
            return self._sum_utilisation / self._num_utilisation if self._num_utilisation else None

    def peak_memory_gib(self) -> float | None:
        """Largest memory in any reading, GiB; None if it is unknown."""
        return self._peak_memory_gib

    def restart_mean(self) -> None:
        """Forget utilisations so far: for the moment when loading and warm-up are over."""
        with self._lock:
            self._sum_utilisation = 0.0
            self._num_utilisation = 0

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
            try:
                self._take(probe.read())
            except Exception as error:
                self._note(error)
                self._latest = Reading()
            self._stop.wait(self._interval_s)

    def _take(self, reading: Reading) -> None:
        with self._lock:
            self._latest = reading
            if reading.utilisation is not None:
                self._sum_utilisation += reading.utilisation
                self._num_utilisation += 1
            if reading.memory_gib is not None:
                self._peak_memory_gib = max(reading.memory_gib, self._peak_memory_gib or 0.0)

    def _note(self, error: Exception) -> None:
        self._error = f"{type(error).__name__}: {error}"
