"""Looks at one NVIDIA device, through NVML (the package nvidia-ml-py, whose module is called pynvml).

The module is a parameter, so that a test can put a fake in its place. NVML tells what it knows value by value: one
that a device does not support (on a MIG slice, almost all but memory) is unknown, and the others still count.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from fluxexp.telemetry.reading import GIB, Reading

UUID_PREFIXES = ("", "GPU-", "MIG-")
"""NVML wants its prefix; CUDA, and so torch, gives the bare UUID."""


class NvmlProbe:
    """Utilisation, memory, power, temperature and SM clock of the device or MIG slice with a UUID.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: there is no driver, or no device of that UUID.
    """

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        self._nvml = importlib.import_module("pynvml") if nvml is None else nvml
        self._nvml.nvmlInit()
        try:
            self._handle = self._find(uuid)
        except BaseException:
            self._nvml.nvmlShutdown()
            raise

    def read(self) -> Reading:
        """Look once.

        Raises:
            pynvml.NVMLError: not one value could be read, as when a device fell off the bus.
        """
        nvml, handle = self._nvml, self._handle
        errors: list[Exception] = []

        def known(read: Callable[[], float]) -> float | None:
            try:
                return float(read())
            except nvml.NVMLError as error:
                errors.append(error)
                return None

        reading = Reading(
            utilisation=known(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            memory_gib=known(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / GIB),
            power_w=known(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            temperature_c=known(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            sm_clock_mhz=known(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        )
        if reading == Reading():
            raise errors[0]
        return reading

    def close(self) -> None:
        """Let go of NVML, which counts its users."""
        self._nvml.nvmlShutdown()

    def _find(self, uuid: str) -> Any:
        first_error: Exception | None = None
        for prefix in UUID_PREFIXES:
            try:
                return self._nvml.nvmlDeviceGetHandleByUUID(prefix + uuid)
            except self._nvml.NVMLError as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error
