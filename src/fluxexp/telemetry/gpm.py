"""Reads how busy the multiprocessors of a GPU are, through NVML's GPM (GPU performance monitoring). Hopper and later.

Utilization only says that some kernel ran. These figures say how much of the device it used. NVML compares two samples
of hardware counters. It allocates the samples, and the caller must free them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

MIN_INTERVAL_S = 0.1
"""Hopper refreshes its counters at this interval. Samples at shorter intervals give wrong values (NVIDIA/DCGM, issue
310)."""


class Activity(NamedTuple):
    """Shares of time, 0..1, between two samples; None if unknown."""

    sm: float | None = None
    tensor: float | None = None


class GpmCounters:
    """Reads the activity of one device since the last reading. The first reading has no values.

    Raises:
        pynvml.NVMLError: the samples could not be allocated. Nothing stays allocated.
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
        """Read once. The values are None if the last reading was less than `MIN_INTERVAL_S` ago.

        Raises:
            pynvml.NVMLError: NVML could not take a sample. The next reading then counts as the first one.
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
        """Free both samples. Calling it again has no effect."""
        self._allocated.close()

    def _compare(self, *, older: Any, newer: Any) -> Activity:
        self._request.sample1, self._request.sample2 = older, newer
        self._nvml.nvmlGpmMetricsGet(self._request)
        sm, tensor = self._request.metrics[:2]
        return Activity(self._share(sm), self._share(tensor))

    def _share(self, metric: Any) -> float | None:
        """Convert a metric from percent to 0..1. Each metric has its own return code."""
        if metric.nvmlReturn != self._nvml.NVML_SUCCESS or not math.isfinite(metric.value):
            return None
        return min(1.0, max(0.0, float(metric.value) / 100))


def open_gpm(nvml: Any, handle: Any) -> GpmCounters | None:
    """Return the counters of a device; None if the device, its driver or the installed pynvml does not support GPM."""
    try:
        return GpmCounters(nvml, handle) if nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice else None
    except (nvml.NVMLError, AttributeError):
        return None


def _request(nvml: Any) -> Any:
    """Make the request for both metrics. It is a structure of 20 KiB, so it is made only once."""
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
