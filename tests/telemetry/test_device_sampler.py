import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fluxexp.telemetry import DeviceSampler, Reading, open_probe
from fluxexp.telemetry.cpu import CpuProbe
from fluxexp.telemetry.nvml import NvmlProbe

GIB = 1024**3
UUID = "GPU-6d1f4f0e-0000-0000-0000-000000000001"
MIG_UUID = "MIG-9aa2c3d4-0000-0000-0000-000000000002"


class NVMLError(Exception):
    pass


class NotSupportedError(NVMLError):
    pass


class NotFoundError(NVMLError):
    pass


class FakeNvml:
    """The part of pynvml in use: one device and one MIG slice, which knows nothing but its memory."""

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVMLError = NVMLError

    def __init__(self) -> None:
        self.users = 0
        self.lost = False
        self.nvmlInit = self._init
        self.nvmlShutdown = self._shutdown
        self.nvmlDeviceGetHandleByUUID = self._handle
        self.nvmlDeviceGetMemoryInfo = self._memory
        self.nvmlDeviceGetUtilizationRates = self._utilisation
        self.nvmlDeviceGetPowerUsage = self._power_mw
        self.nvmlDeviceGetTemperature = self._temperature_c
        self.nvmlDeviceGetClockInfo = self._clock_mhz

    def _init(self) -> None:
        self.users += 1

    def _shutdown(self) -> None:
        self.users -= 1

    def _handle(self, uuid: str) -> str:
        if uuid not in (UUID, MIG_UUID):
            raise NotFoundError("Not Found")
        return uuid

    def _memory(self, handle: str) -> Any:
        self._check(handle, on_mig=True)
        return SimpleNamespace(used=3 * GIB, total=80 * GIB)

    def _utilisation(self, handle: str) -> Any:
        self._check(handle)
        return SimpleNamespace(gpu=87, memory=40)

    def _power_mw(self, handle: str) -> int:
        self._check(handle)
        return 412_500

    def _temperature_c(self, handle: str, sensor: int) -> int:
        self._check(handle)
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 61

    def _clock_mhz(self, handle: str, clock: int) -> int:
        self._check(handle)
        assert clock == self.NVML_CLOCK_SM
        return 1980

    def _check(self, handle: str, on_mig: bool = False) -> None:
        if self.lost:
            raise NVMLError("GPU is lost")
        if handle == MIG_UUID and not on_mig:
            raise NotSupportedError("Not Supported")


class Script:
    """A probe that gives the readings of a list, then repeats the last."""

    def __init__(self, *steps: Reading | Exception) -> None:
        self.steps = list(steps)
        self.closed = False
        self.thread: threading.Thread | None = None

    def read(self) -> Reading:
        self.thread = threading.current_thread()
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        return step

    def close(self) -> None:
        self.closed = True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not happen within 10 s"
        time.sleep(0.005)


def test_every_value_of_a_device_is_read_in_its_unit() -> None:
    probe = NvmlProbe(UUID, FakeNvml())
    assert probe.read() == Reading(
        utilisation=0.87, memory_gib=3.0, power_w=412.5, temperature_c=61.0, sm_clock_mhz=1980.0
    )


def test_what_a_mig_slice_does_not_know_is_absent() -> None:
    assert NvmlProbe(MIG_UUID, FakeNvml()).read() == Reading(memory_gib=3.0)


@pytest.mark.parametrize("uuid", [UUID, MIG_UUID])
def test_a_uuid_as_torch_gives_it_finds_the_device(uuid: str) -> None:
    bare = uuid.split("-", 1)[1]
    assert NvmlProbe(bare, FakeNvml()).read().memory_gib == 3.0


def test_an_unknown_uuid_is_an_error_that_lets_go_of_nvml() -> None:
    nvml = FakeNvml()
    with pytest.raises(NotFoundError):
        NvmlProbe("GPU-other", nvml)
    assert nvml.users == 0


def test_nvml_is_let_go_of() -> None:
    nvml = FakeNvml()
    probe = NvmlProbe(UUID, nvml)
    assert nvml.users == 1
    probe.close()
    assert nvml.users == 0


def test_a_lost_device_is_an_error() -> None:
    nvml = FakeNvml()
    probe = NvmlProbe(UUID, nvml)
    nvml.lost = True
    with pytest.raises(NVMLError, match="GPU is lost"):
        probe.read()


def test_the_installed_pynvml_has_what_the_probe_calls() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in dir(FakeNvml()) if name.startswith(("nvml", "NVML"))]
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_cpu_share_and_memory_of_this_process() -> None:
    probe = CpuProbe()
    first = probe.read()
    assert first.utilisation is None
    assert first.memory_gib is not None
    assert 0 < first.memory_gib < 1024
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    second = probe.read()
    assert second.utilisation is not None
    assert 0 < second.utilisation <= 1
    assert second.power_w is None


def test_figures_of_a_sampler() -> None:
    probe = Script(
        Reading(utilisation=0.2, memory_gib=1.0),
        Reading(utilisation=None, memory_gib=5.0),
        Reading(utilisation=0.6),
        Reading(memory_gib=2.0),
    )
    sampler = DeviceSampler(lambda: probe, interval_s=0.001)
    assert (sampler.latest(), sampler.mean_utilisation(), sampler.peak_memory_gib()) == (None, None, None)
    with sampler:
        wait_until(lambda: sampler.latest() == Reading(memory_gib=2.0))
    assert sampler.mean_utilisation() == pytest.approx(0.4)
    assert sampler.peak_memory_gib() == 5.0
    assert sampler.error is None
    assert probe.closed
    assert probe.thread is not None
    assert not probe.thread.is_alive()
    sampler.restart_mean()
    assert sampler.mean_utilisation() is None
    sampler.stop()


def test_a_failed_reading_is_kept_as_text_and_tried_again() -> None:
    probe = Script(RuntimeError("GPU is lost"), Reading(utilisation=0.5))
    with DeviceSampler(lambda: probe, interval_s=0.001) as sampler:
        wait_until(lambda: sampler.mean_utilisation() == 0.5)
    assert sampler.error == "RuntimeError: GPU is lost"


def test_after_a_failed_reading_nothing_is_known() -> None:
    probe = Script(Reading(utilisation=0.5), RuntimeError("GPU is lost"))
    with DeviceSampler(lambda: probe, interval_s=0.001) as sampler:
        wait_until(lambda: sampler.latest() == Reading())
    assert sampler.mean_utilisation() == 0.5


def test_a_device_that_cannot_be_opened_is_kept_as_text() -> None:
    def fail() -> Script:
        raise ImportError("No module named 'pynvml'")

    with DeviceSampler(fail) as sampler:
        wait_until(lambda: sampler.error is not None)
    assert sampler.error == "ImportError: No module named 'pynvml'"
    assert sampler.latest() is None


def test_an_error_while_closing_stays_in_the_thread() -> None:
    class Stuck(Script):
        def close(self) -> None:
            raise OSError("busy")

    with DeviceSampler(lambda: Stuck(Reading())) as sampler:
        wait_until(lambda: sampler.latest() is not None)
    assert sampler.error == "OSError: busy"


def test_a_uuid_chooses_nvml_and_none_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert isinstance(open_probe(UUID), NvmlProbe)
    assert nvml.users == 1
    with DeviceSampler.of(None, interval_s=0.01) as sampler:
        wait_until(lambda: sampler.latest() is not None)
    assert sampler.peak_memory_gib() is not None


def test_cpu_share_is_of_all_cores_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda _: list(range(1000)), raising=False)
    probe = CpuProbe()
    probe.read()
    end_s = time.process_time() + 0.05
    while time.process_time() < end_s:
        pass
    share = probe.read().utilisation
    assert share is not None
    assert 0 < share <= 0.01


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no NVIDIA GPU: {error}")
    uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0))
    with DeviceSampler.of(uuid.removeprefix("GPU-"), interval_s=0.05) as sampler:
        wait_until(lambda: sampler.latest() is not None or sampler.error is not None)
    assert sampler.error is None
    reading = sampler.latest()
    assert reading is not None
    assert reading.memory_gib is not None
    assert reading.memory_gib > 0
    assert reading.utilisation is None or 0 <= reading.utilisation <= 1
    assert reading.power_w is None or 5 < reading.power_w < 2000
    pynvml.nvmlShutdown()
