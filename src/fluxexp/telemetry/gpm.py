"""How busy the inside of a GPU is, through NVML's GPM (GPU performance monitoring), on Hopper and later.

Utilisation says that some kernel ran; these figures say how much of the device it filled. NVML compares two samples of
hardware counters, which it allocates and which have to be given back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

MIN_INTERVAL_S = 0.1
"""Hopper's counters are refreshed this often: samples that lie closer give nonsense (NVIDIA/DCGM, issue 310)."""


class Activity(NamedTuple):
    """Shares of time, 0..1, between two samples; None where unknown."""

    sm: float | None = None
    tensor: float | None = None


class GpmCounters:
    """The activity of one device since the look before; the first look has none.

    Raises:
        pynvml.NVMLError: no samples could be allocated; nothing is left allocated.
    """

    def __init__(self, nvml: Any, handle: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml = nvml
        self._handle = handle
        self._clock = clock
        self._request = _request(nvml)
        self._last_s: float | None = None
        with ExitStack() as allocated:
            self._last = _allocate(nvml, allocated)
            self._spare = _allocate(nvml, allocated)
            self._allocated = allocated.pop_all()

    def read(self) -> Activity:
        """Look once; unknown if the look before was less than `MIN_INTERVAL_S` ago.

        Raises:
            pynvml.NVMLError: no sample could be taken. The next look is then a first one.
        """
        now_s, before_s = self._clock(), self._last_s
        if before_s is not None and now_s - before_s < MIN_INTERVAL_S:
            return Activity()
        self._last_s = None
        self._nvml.nvmlGpmSampleGet(self._handle, self._spare)
        self._last_s = now_s
        self._last, self._spare = self._spare, self._last
        return Activity() if before_s is None else self._compare(older=self._spare, newer=self._last)

    def close(self) -> None:
        """Free both samples; safe to call again."""
        self._allocated.close()

    def _compare(self, *, older: Any, newer: Any) -> Activity:
        self._request.sample1, self._request.sample2 = older, newer
        self._nvml.nvmlGpmMetricsGet(self._request)
        sm, tensor = self._request.metrics[:2]
        return Activity(self._share(sm), self._share(tensor))

    def _share(self, metric: Any) -> float | None:
        """0..1 from a metric in percent, each of which has a return code of its own."""
        if metric.nvmlReturn != self._nvml.NVML_SUCCESS or not math.isfinite(metric.value):
            return None
        return min(1.0, max(0.0, float(metric.value) / 100))


def open_gpm(nvml: Any, handle: Any) -> GpmCounters | None:
    """The counters of a device; None if it, its driver or the installed pynvml has none."""
    try:
        return GpmCounters(nvml, handle) if nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice else None
    except (nvml.NVMLError, AttributeError):
        return None


def _request(nvml: Any) -> Any:
    """NVML's question for both metrics. It is a structure of 20 KiB, so it is made only once."""
    request = nvml.c_nvmlGpmMetricsGet_t()
    request.version = nvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = 2
    request.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
    request.metrics[1].metricId = nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL
    return request


def _allocate(nvml: Any, allocated: ExitStack) -> Any:
    sample = nvml.nvmlGpmSampleAlloc()
    allocated.callback(nvml.nvmlGpmSampleFree, sample)
    return sample
