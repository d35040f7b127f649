"""Looks at one NVIDIA device, through NVML (the package nvidia-ml-py, whose module is called pynvml).

The module is a parameter, so that a test can put a fake in its place. NVML tells what it knows value by value: one
that a device does not support (on a MIG slice, almost all but memory) is unknown, and the others still count.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from fluxexp.telemetry.gpm import Activity, open_gpm
from fluxexp.telemetry.reading import GIB, Reading
from fluxexp.telemetry.throttling import read_reasons

T = TypeVar("T")


def has_driver() -> bool:
    """Whether NVML finds a driver and a GPU."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # pynvml's own errors cannot be named where it is not installed
        return False
    try:
        return int(nvml.nvmlDeviceGetCount()) > 0
    finally:
        nvml.nvmlShutdown()


def nvlink_peers(uuid: str | None, nvml: Any = None) -> int:
    """GPUs of this machine that NVLink connects the one with `uuid` to; 0 where that is unknown."""
    try:
        nvml = importlib.import_module("pynvml") if nvml is None else nvml
        nvml.nvmlInit()
    except Exception:  # pynvml's own errors cannot be named where it is not installed
        return 0
    try:
        own = nvml.nvmlDeviceGetHandleByUUID(uuid)
        others = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        linked = [nvml.nvmlDeviceGetP2PStatus(own, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK) for other in others]
        return linked.count(nvml.NVML_P2P_STATUS_OK)
    except nvml.NVMLError:
        return 0
    finally:
        nvml.nvmlShutdown()


class NvmlProbe:
    """All that a `Reading` has, of the device or MIG slice with a UUID; never by index, which CUDA counts differently.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: there is no driver, or no device of that UUID.
    """

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        self._nvml = importlib.import_module("pynvml") if nvml is None else nvml
        with ExitStack() as opened:
            self._nvml.nvmlInit()
            opened.callback(self._nvml.nvmlShutdown)
            self._handle = self._find(uuid)
            self._gpm = open_gpm(self._nvml, self._handle)
            if self._gpm is not None:
                opened.callback(self._gpm.close)
            self._opened = opened.pop_all()

    def read(self) -> Reading:
        """Look once: ten calls of NVML at most, so that a look every second costs far less than 1% of a core.

        Raises:
            pynvml.NVMLError: not one value could be read, as when a device fell off the bus.
        """
        nvml, handle = self._nvml, self._handle
        errors: list[Exception] = []

        def known(read: Callable[[], T]) -> T | None:
            try:
                return read()
            except nvml.NVMLError as error:
                errors.append(error)
                return None

        activity = known(self._gpm.read) if self._gpm is not None else None
        sm_activity, tensor_activity = activity or Activity()
        reading = Reading(
            utilisation=known(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)),
            sm_activity=sm_activity,
            tensor_activity=tensor_activity,
            memory_gib=known(lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used / GIB)),
            power_w=known(lambda: float(nvml.nvmlDeviceGetPowerUsage(handle) / 1000)),
            energy_j=known(lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)),
            temperature_c=known(lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            sm_clock_mhz=known(lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            memory_clock_mhz=known(lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
            throttle_reasons=known(lambda: read_reasons(nvml, handle)),
        )
        if reading == Reading():
            raise errors[-1]
        return reading

    def close(self) -> None:
        """Free what was allocated, and let go of NVML, which counts its users; safe to call again."""
        self._opened.close()

    def _find(self, uuid: str) -> Any:
        first_error: Exception | None = None
        for spelling in _spellings(uuid):
            try:
                return self._nvml.nvmlDeviceGetHandleByUUID(spelling)
            except self._nvml.NVMLError as error:
                first_error = first_error or error
        assert first_error is not None
        raise first_error


def _spellings(uuid: str) -> tuple[str, ...]:
    """What NVML may call this device. CUDA, and so torch, gives the UUID of a GPU or a MIG slice without a prefix, and
    whoever puts one before it cannot know which."""
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    return uuid, f"GPU-{bare}", f"MIG-{bare}"
