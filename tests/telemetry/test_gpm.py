from __future__ import annotations

import math

import pynvml
import pytest

from fluxexp.telemetry.gpm import Activity, GpmCounters, open_gpm
from fluxexp.telemetry.nvml import NvmlProbe
from tests.telemetry.fake_nvml import MIG_UUID, UUID, FakeNvml


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


@pytest.fixture
def nvml() -> FakeNvml:
    nvml = FakeNvml()
    nvml.nvmlInit()
    return nvml


@pytest.fixture
def gpm(nvml: FakeNvml) -> GpmCounters:
    return GpmCounters(nvml, UUID, clock=Clock())


def test_each_sample_is_compared_with_the_one_before(nvml: FakeNvml, gpm: GpmCounters) -> None:
    assert gpm.read() == Activity(None, None)
    for percent in (75.0, 50.0, 0.0):
        nvml.sm_percent = percent
        assert gpm.read() == Activity(percent / 100, 0.4)
    assert len(nvml.samples) == 2


def test_a_probe_knows_activity_from_its_second_reading_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.telemetry.gpm.MIN_INTERVAL_S", 0.0)
    probe = NvmlProbe(UUID, FakeNvml())
    first, second = probe.read(), probe.read()
    assert (first.sm_activity, first.tensor_activity) == (None, None)
    assert (second.sm_activity, second.tensor_activity) == (0.75, 0.4)


def test_samples_that_are_too_close_are_not_compared(nvml: FakeNvml) -> None:
    now_s = [0.0]
    gpm = GpmCounters(nvml, UUID, clock=lambda: now_s[0])
    gpm.read()
    now_s[0] = 0.09
    assert gpm.read() == Activity(None, None)
    assert nvml.calls["nvmlGpmSampleGet"] == 1
    now_s[0] = 0.11
    assert gpm.read() == Activity(0.75, 0.4)


def test_after_a_failed_sample_the_next_counts_as_the_first(nvml: FakeNvml, gpm: GpmCounters) -> None:
    gpm.read()
    nvml.lost = True
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        gpm.read()
    nvml.lost = False
    assert gpm.read() == Activity(None, None)
    assert gpm.read() == Activity(0.75, 0.4)


def test_one_metric_can_be_unknown(nvml: FakeNvml, gpm: GpmCounters) -> None:
    gpm.read()
    nvml.tensor_return = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert gpm.read() == Activity(0.75, None)


def test_shares_lie_between_0_and_1_and_are_numbers(nvml: FakeNvml, gpm: GpmCounters) -> None:
    gpm.read()
    nvml.sm_percent, nvml.tensor_percent = 100.3, math.nan
    assert gpm.read() == Activity(1.0, None)


def test_a_failed_comparison_keeps_the_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.telemetry.gpm.MIN_INTERVAL_S", 0.0)
    nvml = FakeNvml()
    nvml.unknown = {"nvmlGpmMetricsGet"}
    probe = NvmlProbe(UUID, nvml)
    probe.read()
    reading = probe.read()
    assert (reading.sm_activity, reading.utilization) == (None, 0.87)


def test_a_device_before_hopper_has_no_counters(nvml: FakeNvml) -> None:
    nvml.has_gpm = False
    assert open_gpm(nvml, UUID) is None
    assert nvml.samples == {}
    assert NvmlProbe(UUID, nvml).read().utilization == 0.87


def test_a_mig_slice_has_no_counters(nvml: FakeNvml) -> None:
    assert open_gpm(nvml, MIG_UUID) is None


def test_a_driver_before_gpm_has_no_counters(nvml: FakeNvml) -> None:
    nvml.missing = {"nvmlGpmQueryDeviceSupport"}
    assert open_gpm(nvml, UUID) is None


def test_a_pynvml_before_gpm_has_no_counters(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pynvml, "nvmlGpmQueryDeviceSupport")
    assert open_gpm(nvml, UUID) is None


def test_a_sample_is_freed_if_the_other_cannot_be_allocated(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate_one(nvml: FakeNvml) -> object:
        if nvml.samples:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_MEMORY)
        return allocate(nvml)

    allocate = FakeNvml._nvmlGpmSampleAlloc
    monkeypatch.setattr(FakeNvml, "_nvmlGpmSampleAlloc", allocate_one)
    assert open_gpm(nvml, UUID) is None
    assert nvml.calls["nvmlGpmSampleAlloc"] == 2
    assert nvml.samples == {}


def test_samples_are_freed_once(nvml: FakeNvml, gpm: GpmCounters) -> None:
    gpm.close()
    gpm.close()
    assert nvml.samples == {}
