import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pynvml
import pytest

from fluxexp.telemetry import DeviceFigures, DeviceSampler, Reading, open_probe
from fluxexp.telemetry.cpu import CpuProbe
from fluxexp.telemetry.nvml import NvmlProbe
from tests.telemetry.fake_nvml import UUID, FakeNvml


class Script:
    """A probe that returns the readings of a list and then repeats the last one."""

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


def test_cpu_share_and_memory_of_this_process() -> None:
    probe = CpuProbe()
    first = probe.read()
    assert first.utilization is None
    assert first.memory_gib is not None
    assert 0 < first.memory_gib < 1024
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    second = probe.read()
    assert second.utilization is not None
    assert 0 < second.utilization <= 1
    assert second.power_w is None


def test_figures_of_a_sampler() -> None:
    probe = Script(
        Reading(utilization=0.2, memory_gib=1.0),
        Reading(utilization=None, memory_gib=5.0),
        Reading(utilization=0.6),
        Reading(memory_gib=2.0),
    )
    sampler = DeviceSampler(lambda: probe, interval_s=0.001)
    assert (sampler.latest(), sampler.figures().utilization_mean, sampler.figures().memory_peak_gib) == (
        None,
        None,
        None,
    )
    with sampler:
        wait_until(lambda: sampler.latest() == Reading(memory_gib=2.0))
    assert sampler.figures().utilization_mean == pytest.approx(0.4)
    assert sampler.figures().memory_peak_gib == 5.0
    assert sampler.error is None
    assert probe.closed
    assert probe.thread is not None
    assert not probe.thread.is_alive()
    sampler.restart_means()
    assert sampler.figures().utilization_mean is None
    sampler.stop()


def test_a_failed_reading_is_kept_as_text_and_tried_again() -> None:
    probe = Script(RuntimeError("GPU is lost"), Reading(utilization=0.5))
    with DeviceSampler(lambda: probe, interval_s=0.001) as sampler:
        wait_until(lambda: sampler.figures().utilization_mean == 0.5)
    assert sampler.error == "RuntimeError: GPU is lost"


def test_after_a_failed_reading_all_values_are_unknown() -> None:
    probe = Script(Reading(utilization=0.5), RuntimeError("GPU is lost"))
    with DeviceSampler(lambda: probe, interval_s=0.001) as sampler:
        wait_until(lambda: sampler.latest() == Reading())
    assert sampler.figures().utilization_mean == 0.5


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
    assert sampler.figures().memory_peak_gib is not None


def test_cpu_utilization_is_relative_to_the_cores_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda _: list(range(1000)), raising=False)
    probe = CpuProbe()
    probe.read()
    end_s = time.process_time() + 0.05
    while time.process_time() < end_s:
        pass
    share = probe.read().utilization
    assert share is not None
    assert 0 < share <= 0.01


def test_a_sampler_reads_once_more_at_the_end_for_the_energy() -> None:
    probe = Script(Reading(energy_j=100.0), Reading(energy_j=350.0))
    with DeviceSampler(lambda: probe, interval_s=60.0) as sampler:
        wait_until(lambda: sampler.latest() is not None)
        assert sampler.figures().energy_j is None
    assert sampler.figures().energy_j == 250.0


def test_power_is_integrated_over_the_clock() -> None:
    ticks_s = iter([10.0, 40.0])
    probe = Script(Reading(power_w=100.0), Reading(power_w=200.0))
    with DeviceSampler(lambda: probe, interval_s=60.0, clock=lambda: next(ticks_s)) as sampler:
        wait_until(lambda: sampler.latest() is not None)
    assert sampler.figures().energy_j == 4500.0


def test_figures_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.telemetry.gpm.MIN_INTERVAL_S", 0.0)
    nvml = FakeNvml()
    nvml.reasons = pynvml.nvmlClocksEventReasonSwPowerCap
    with DeviceSampler(lambda: NvmlProbe(UUID, nvml), interval_s=60.0) as sampler:
        wait_until(lambda: sampler.latest() is not None)
        nvml.energy_mj += 90_500
    assert sampler.figures() == DeviceFigures(
        utilization_mean=0.87,
        sm_activity_mean=0.75,
        tensor_activity_mean=0.4,
        power_mean_w=412.5,
        energy_j=90.5,
        temperature_peak_c=61.0,
        throttle_reasons=("power_cap",),
        memory_peak_gib=3.0,
    )
    assert (nvml.users, nvml.samples) == (0, {})


def test_a_device_that_falls_off_the_bus_keeps_its_figures() -> None:
    nvml = FakeNvml()
    with DeviceSampler(lambda: NvmlProbe(UUID, nvml), interval_s=0.001) as sampler:
        wait_until(lambda: sampler.latest() is not None)
        nvml.lost = True
        wait_until(lambda: sampler.latest() == Reading())
    assert sampler.error == "NVMLError_GpuIsLost: GPU is lost"
    assert sampler.figures().temperature_peak_c == 61.0
    assert (nvml.users, nvml.samples) == (0, {})


def test_figures_on_a_cpu() -> None:
    with DeviceSampler.of(None, interval_s=0.01) as sampler:
        wait_until(lambda: sampler.figures().utilization_mean is not None)
    figures = sampler.figures()
    assert figures.memory_peak_gib is not None
    assert figures == DeviceFigures(
        utilization_mean=figures.utilization_mean, memory_peak_gib=figures.memory_peak_gib
    ), "a CPU has no other figures"


@pytest.mark.gpu
def test_figures_of_a_busy_gpu() -> None:
    """All figures of CUDA device 0 while it multiplies matrices. NVML may number it differently."""
    import torch

    uuid = str(torch.cuda.get_device_properties(0).uuid)
    matrix = torch.randn(8192, 8192, device="cuda:0", dtype=torch.bfloat16)
    with DeviceSampler.of(uuid, interval_s=0.25) as sampler:
        end_s = time.monotonic() + 3
        while time.monotonic() < end_s:
            for _ in range(20):
                matrix @ matrix
            torch.cuda.synchronize()
    assert sampler.error is None
    reading, figures = sampler.latest(), sampler.figures()
    assert reading is not None
    assert figures.memory_peak_gib is not None
    assert figures.memory_peak_gib > matrix.nbytes / 2**30
    if figures.utilization_mean is None:
        pytest.skip("a MIG slice knows nothing but its memory")
    assert 0 < figures.utilization_mean <= 1
    assert figures.power_mean_w is not None
    assert 20 < figures.power_mean_w < 3000
    assert figures.energy_j is not None
    assert 0.3 < figures.energy_j / (3 * figures.power_mean_w) < 3
    assert figures.temperature_peak_c is not None
    assert 10 < figures.temperature_peak_c < 120
    assert reading.sm_clock_mhz is not None
    assert reading.memory_clock_mhz is not None
    assert reading.throttle_reasons is not None
    if torch.cuda.get_device_capability(0) < (9, 0):
        assert figures.sm_activity_mean is None or 0 <= figures.sm_activity_mean <= 1
    elif figures.sm_activity_mean is not None:  # a driver can restrict the counters to administrators
        assert figures.tensor_activity_mean is not None
        assert 0.2 < figures.sm_activity_mean <= 1
        assert 0.05 < figures.tensor_activity_mean <= 1


SECOND_DEVICE = """
import torch
from fluxexp.telemetry import open_probe
blob = torch.zeros(2**31, dtype=torch.uint8, device="cuda:0")
torch.cuda.synchronize()
print(open_probe(str(torch.cuda.get_device_properties(0).uuid)).read().memory_gib)
"""


@pytest.mark.gpu
def test_the_last_gpu_is_found_when_cuda_calls_it_the_first() -> None:
    import torch

    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": _last_visible(torch.cuda.device_count())}
    answer = subprocess.run(
        [sys.executable, "-c", SECOND_DEVICE], env=environment, capture_output=True, text=True, check=True
    )
    assert float(answer.stdout) > 2


def _last_visible(count: int) -> str:
    """The entry of CUDA_VISIBLE_DEVICES for the last device that this process sees."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[-1] if named else str(count - 1)
