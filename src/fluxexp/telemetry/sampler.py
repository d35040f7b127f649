"""Reads a device periodically on a background thread, through a probe (`nvml.py`, `cpu.py`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

from fluxexp.telemetry.reading import Probe, Reading
from fluxexp.telemetry.tally import DeviceFigures, Tally


def open_probe(device_uuid: str | None) -> Probe:
    """Open the probe for the NVIDIA device with this UUID, or for this process on the CPU if None.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: the device cannot be read.
    """
    if device_uuid is None:
        from fluxexp.telemetry.cpu import CpuProbe

        return CpuProbe()
    from fluxexp.telemetry.nvml import NvmlProbe

    return NvmlProbe(device_uuid)


class DeviceSampler:
    """Reads a device every `interval_s` seconds on a daemon thread, from `start` to `stop`, and once at the end.

    It can be started again after `stop`, and then adds to the same figures.

    `open_device` runs on that thread, because opening a driver can take long. The thread catches all exceptions, and
    `error` holds the text of the last one. After a failed reading, the thread tries again at the next interval. After a
    failed opening, it ends. All methods except `start` and `stop` may be called from any thread.
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
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, device_uuid: str | None, *, interval_s: float = 1.0) -> Self:
        """Make a sampler, not started, of the NVIDIA device with this UUID, or of this process on the CPU if None."""
        return cls(lambda: open_probe(device_uuid), interval_s=interval_s)

    @property
    def error(self) -> str | None:
        """Text of the last error, or None."""
        return self._error

    def latest(self) -> Reading | None:
        """The latest reading; None before the first one."""
        return self._latest

    def figures(self) -> DeviceFigures:
        """Summarize the readings so far."""
        with self._lock:
            return self._tally.figures()

    def restart_means(self) -> None:
        """Start the means again. The worker calls it when loading and warm-up are over."""
        with self._lock:
            self._tally.restart_means()

    def start(self) -> Self:
        """Start the thread."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="device-sampler", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the thread and wait for its end, but not forever, because a driver can hang. It may be called again."""
        self._stop.set()
        if self._thread is not None:
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
            self._read(probe)
            self._stop.wait(self._interval_s)
        self._read(probe)  # otherwise the energy of the last interval would be missing

    def _read(self, probe: Probe) -> None:
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
