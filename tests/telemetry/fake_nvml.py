"""A stand-in for pynvml: its functions, over two devices and a MIG slice; its errors, constants and structures, real.

Whatever is not faked here is refused, so that a test fails where the code asks for something else, a device by its
index for one.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 1024**3
UUID = "GPU-6d1f4f0e-0000-0000-0000-000000000001"
OTHER_UUID = "GPU-6d1f4f0e-0000-0000-0000-000000000003"
MIG_UUID = "MIG-9aa2c3d4-0000-0000-0000-000000000002"
MEMORY_GIB = {UUID: 3, OTHER_UUID: 7, MIG_UUID: 1}


class FakeNvml:
    """The functions of pynvml. The attributes set their answers."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.users = 0
        self.lost = False
        self.missing: set[str] = set()
        """Functions that this driver does not have."""
        self.unknown: set[str] = set()
        """Functions that the device does not support."""
        self.has_gpm = True
        self.energy_mj = 5_000_000
        self.reasons = pynvml.nvmlClocksEventReasonGpuIdle
        self.sm_percent = 75.0
        self.tensor_percent = 40.0
        self.tensor_return = pynvml.NVML_SUCCESS
        self.samples: dict[int, int | None] = {}
        """Allocated samples: the address of each one, and the number of the sample that it holds."""
        self._kept: list[Any] = []
        self._turn = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(pynvml, name)
        if name.startswith("nvml") and callable(value):
            value = self._function(name)
        return value

    def _function(self, name: str) -> Callable[..., Any]:
        body: Callable[..., Any] | None = getattr(type(self), f"_{name}", None)
        assert body is not None, f"{name} is not to be called"

        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            if name in self.missing:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            assert self.users or name == "nvmlInit", f"{name} after nvmlShutdown"
            if name in self.unknown:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return body(self, *arguments)

        return call

    def _nvmlInit(self) -> None:  # noqa: N802
        self.users += 1

    def _nvmlShutdown(self) -> None:  # noqa: N802
        self.users -= 1

    def _nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in MEMORY_GIB:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def _nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        self._check(handle, on_mig=True)
        return SimpleNamespace(used=MEMORY_GIB[handle] * GIB, total=80 * GIB)

    def _nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        self._check(handle)
        return SimpleNamespace(gpu=87, memory=40)

    def _nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        self._check(handle)
        return 412_500

    def _nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self._check(handle)
        return self.energy_mj

    def _nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        self._check(handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 61

    def _nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:  # noqa: N802
        self._check(handle)
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[clock]

    def _nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        self._check(handle)
        return int(self.reasons)

    _nvmlDeviceGetCurrentClocksThrottleReasons = _nvmlDeviceGetCurrentClocksEventReasons  # noqa: N815

    def _nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:  # noqa: N802
        self._check(handle)
        support = pynvml.c_nvmlGpmSupport_t()
        support.isSupportedDevice = int(self.has_gpm)
        return support

    def _nvmlGpmSampleAlloc(self) -> Any:  # noqa: N802
        target = pynvml.struct_c_nvmlGpmSample_t()
        self._kept.append(target)  # keeps the object alive, so that its address is not used again
        sample = pynvml.c_nvmlGpmSample_t(target)
        self.samples[_address(sample)] = None
        return sample

    def _nvmlGpmSampleFree(self, sample: Any) -> None:  # noqa: N802
        del self.samples[_address(sample)]

    def _nvmlGpmSampleGet(self, handle: str, sample: Any) -> Any:  # noqa: N802
        self._check(handle)
        assert _address(sample) in self.samples
        self._turn += 1
        self.samples[_address(sample)] = self._turn
        return sample

    def _nvmlGpmMetricsGet(self, request: Any) -> Any:  # noqa: N802
        older, newer = (self.samples[_address(sample)] for sample in (request.sample1, request.sample2))
        if older is None or newer is None or older >= newer or request.version != pynvml.NVML_GPM_METRICS_GET_VERSION:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        answers = {
            pynvml.NVML_GPM_METRIC_SM_UTIL: (self.sm_percent, pynvml.NVML_SUCCESS),
            pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: (self.tensor_percent, self.tensor_return),
        }
        for metric in request.metrics[: request.numMetrics]:
            metric.value, metric.nvmlReturn = answers[metric.metricId]
        return request

    def _check(self, handle: str, on_mig: bool = False) -> None:
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if handle == MIG_UUID and not on_mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def _address(sample: Any) -> int:
    return ctypes.addressof(sample.contents)
