"""Reads one NVIDIA device through NVML (package nvidia-ml-py, module pynvml).

The module is a parameter, so that tests can pass a fake. Each value is read by itself: a value that the device does not
support is None, and the others are still read. A MIG slice supports hardly more than memory.
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
    """Whether NVML finds a driver and a GPU. A driver that does not answer is none."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        with ExitStack() as stack:
            stack.callback(nvml.nvmlShutdown)
            return int(nvml.nvmlDeviceGetCount()) > 0
    except Exception:  # pynvml's own errors have no name if it is not installed
        return False


def nvlink_peers(uuid: str | None, nvml: Any = None) -> int:
    """Return the number of GPUs of this machine that NVLink connects to the GPU `uuid`; 0 if it is unknown."""
    try:
        nvml = importlib.import_module("pynvml") if nvml is None else nvml
        nvml.nvmlInit()
        with ExitStack() as stack:
            stack.callback(nvml.nvmlShutdown)
            own = nvml.nvmlDeviceGetHandleByUUID(uuid)
            others = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            linked = [nvml.nvmlDeviceGetP2PStatus(own, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK) for other in others]
            return linked.count(nvml.NVML_P2P_STATUS_OK)
    except Exception:  # pynvml's own errors have no name if it is not installed
        return 0


class NvmlProbe:
    """Reads all values of a `Reading` for the device or MIG slice with a UUID.

    It does not use the index, because CUDA numbers devices differently.

    Raises:
        ImportError: nvidia-ml-py is not installed.
        pynvml.NVMLError: there is no driver, or no device with this UUID.
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
        """Read once. It takes about ten calls of NVML, so one reading per second costs far less than 1% of a core.

        Raises:
            pynvml.NVMLError: no value could be read, for example because the device fell off the bus.
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
            utilization=known(lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)),
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
        """Free the samples and shut NVML down, which counts its users. Calling it again has no effect."""
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
    """Names that NVML may have for this device.

    CUDA, and so torch, gives UUIDs without a prefix. The caller cannot know whether a UUID is that of a GPU or of a MIG
    slice.
    """
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    return uuid, f"GPU-{bare}", f"MIG-{bare}"
