from __future__ import annotations

import pynvml
import pytest

from fluxexp.telemetry import Reading
from fluxexp.telemetry.nvml import NvmlProbe
from fluxexp.telemetry.throttling import IDLE_BIT, REASONS, name_reasons
from tests.telemetry.fake_nvml import MIG_UUID, OTHER_UUID, UUID, FakeNvml

EVENT_REASONS = "nvmlDeviceGetCurrentClocksEventReasons"


def test_every_value_of_a_device_is_read_in_its_unit() -> None:
    assert NvmlProbe(UUID, FakeNvml()).read() == Reading(
        utilization=0.87,
        memory_gib=3.0,
        power_w=412.5,
        energy_j=5000.0,
        temperature_c=61.0,
        sm_clock_mhz=1980.0,
        memory_clock_mhz=2619.0,
        throttle_reasons=(),
    )


def test_values_that_a_mig_slice_does_not_support_are_none() -> None:
    nvml = FakeNvml()
    assert NvmlProbe(MIG_UUID, nvml).read() == Reading(memory_gib=1.0)
    assert not nvml.samples


@pytest.mark.parametrize(
    ("function", "absent"),
    [
        ("nvmlDeviceGetUtilizationRates", {"utilization"}),
        ("nvmlDeviceGetMemoryInfo", {"memory_gib"}),
        ("nvmlDeviceGetPowerUsage", {"power_w"}),
        ("nvmlDeviceGetTotalEnergyConsumption", {"energy_j"}),
        ("nvmlDeviceGetTemperature", {"temperature_c"}),
        ("nvmlDeviceGetClockInfo", {"sm_clock_mhz", "memory_clock_mhz"}),
        (EVENT_REASONS, {"throttle_reasons"}),
    ],
)
def test_an_unsupported_value_is_none_and_the_others_are_read(function: str, absent: set[str]) -> None:
    nvml = FakeNvml()
    nvml.unknown = {function}
    reading = NvmlProbe(UUID, nvml).read()
    unknown = {name for name in Reading.__dataclass_fields__ if getattr(reading, name) is None}
    assert unknown == absent | {"sm_activity", "tensor_activity"}


@pytest.mark.parametrize("prefix", ["", "GPU-", "MIG-"])
@pytest.mark.parametrize(("uuid", "memory_gib"), [(UUID, 3.0), (OTHER_UUID, 7.0), (MIG_UUID, 1.0)])
def test_a_device_is_found_by_any_spelling_of_its_uuid(uuid: str, memory_gib: float, prefix: str) -> None:
    bare = uuid.split("-", 1)[1]
    assert NvmlProbe(prefix + bare, FakeNvml()).read().memory_gib == memory_gib


@pytest.mark.parametrize("visible", ["", "0", "1,0", "1", OTHER_UUID, MIG_UUID, "-1"])
def test_devices_are_found_independent_of_cuda_visible_devices(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = FakeNvml()  # it rejects calls with an index
    assert NvmlProbe(UUID, nvml).read().memory_gib == 3.0
    assert NvmlProbe(OTHER_UUID, nvml).read().memory_gib == 7.0


def test_an_unknown_uuid_is_an_error_and_nvml_is_shut_down() -> None:
    nvml = FakeNvml()
    with pytest.raises(pynvml.NVMLError_NotFound):
        NvmlProbe("GPU-other", nvml)
    assert nvml.users == 0


def test_nvml_is_shut_down_once_after_samples_are_freed() -> None:
    nvml = FakeNvml()
    probe = NvmlProbe(UUID, nvml)
    assert nvml.users == 1
    assert len(nvml.samples) == 2
    probe.close()
    probe.close()
    assert nvml.users == 0
    assert nvml.samples == {}


def test_a_device_off_the_bus_is_an_error_and_can_be_closed() -> None:
    nvml = FakeNvml()
    probe = NvmlProbe(UUID, nvml)
    probe.read()
    nvml.lost = True
    with pytest.raises(pynvml.NVMLError_GpuIsLost, match="GPU is lost"):
        probe.read()
    probe.close()
    assert (nvml.users, nvml.samples) == (0, {})


def test_nvml_is_shut_down_even_if_samples_cannot_be_freed() -> None:
    nvml = FakeNvml()
    probe = NvmlProbe(UUID, nvml)
    nvml.unknown = {"nvmlGpmSampleFree"}
    with pytest.raises(pynvml.NVMLError_NotSupported):
        probe.close()
    assert nvml.users == 0


def test_a_reading_takes_at_most_ten_calls_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.telemetry.gpm.MIN_INTERVAL_S", 0.0)
    nvml = FakeNvml()
    probe = NvmlProbe(UUID, nvml)
    for _ in range(3):
        nvml.calls.clear()
        reading = probe.read()
        assert nvml.calls.total() <= 10
        assert {name for name, count in nvml.calls.items() if count > 1} == {"nvmlDeviceGetClockInfo"}
    assert None not in [getattr(reading, name) for name in Reading.__dataclass_fields__]


def test_throttle_reasons_have_names_and_idle_is_not_one() -> None:
    nvml = FakeNvml()
    probe = NvmlProbe(UUID, nvml)
    nvml.reasons = (
        pynvml.nvmlClocksEventReasonGpuIdle
        | pynvml.nvmlClocksEventReasonHwThermalSlowdown
        | pynvml.nvmlClocksEventReasonSwPowerCap
    )
    assert probe.read().throttle_reasons == ("power_cap", "hw_thermal")


def test_a_reason_without_a_name_is_shown_as_a_number() -> None:
    assert name_reasons(0x4000_0001) == ("0x40000000",)


def test_every_reason_that_pynvml_knows_has_a_name() -> None:
    known = pynvml.nvmlClocksEventReasonAll | pynvml.nvmlClocksThrottleReasonAll
    assert sum(REASONS) | IDLE_BIT == known
    assert REASONS[pynvml.nvmlClocksEventReasonSwPowerCap] == "power_cap"
    assert REASONS[pynvml.nvmlClocksEventReasonSwThermalSlowdown] == "sw_thermal"
    assert REASONS[pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown] == "power_brake"
    assert REASONS[pynvml.nvmlClocksThrottleReasonReliability] == "reliability"


def test_an_older_driver_uses_the_older_function_for_reasons() -> None:
    nvml = FakeNvml()
    nvml.missing = {EVENT_REASONS}
    nvml.reasons = pynvml.nvmlClocksThrottleReasonHwSlowdown
    assert NvmlProbe(UUID, nvml).read().throttle_reasons == ("hw_slowdown",)


def test_an_older_pynvml_uses_the_older_function_for_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pynvml, EVENT_REASONS)
    nvml = FakeNvml()
    nvml.reasons = pynvml.nvmlClocksThrottleReasonHwSlowdown
    assert NvmlProbe(UUID, nvml).read().throttle_reasons == ("hw_slowdown",)
