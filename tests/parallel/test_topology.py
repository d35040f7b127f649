from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fluxexp.config.schema import ParallelismConfig
from fluxexp.errors import ConfigError
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.topology import (
    Topology,
    _with_visible_device,
    is_device_lost,
    is_out_of_memory,
    join,
    unused_devices,
)
from fluxexp.rank_environment import RankEnvironment

CPU = ParallelismConfig(
    mode="auto",
    context_size=None,
    context_kind="ulysses",
    schedule="static",
    device="cpu",
    cpu_threads=1,
    expect_world_size=None,
    join_timeout_s=1800,
    lost_after_s=None,
    hung_after_s=None,
)


def test_one_process_is_rank_0_of_1() -> None:
    topology = join(CPU)
    assert (topology.rank, topology.world_size, topology.is_main) == (0, 1, True)
    assert topology.device == torch.device("cpu")
    assert topology.device_uuid is None
    assert topology.peak_memory_gib() is None


def test_the_number_of_threads_does_not_depend_on_the_launcher() -> None:
    join(replace(CPU, cpu_threads=2))
    assert torch.get_num_threads() == 2
    join(CPU)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("num_visible", "number"), [(1, 0), (8, 3)])
def test_a_task_of_srun_uses_the_only_gpu_that_it_sees(
    num_visible: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    task = RankEnvironment(rank=11, world_size=16, local_rank=3, local_world_size=8, is_slurm_task=True)
    assert _with_visible_device(task) == replace(task, local_rank=number)


def test_every_session_has_a_coordinator_of_its_own() -> None:
    first, second = join(CPU), join(CPU)
    first.coordinator.put("plan", 1)
    assert second.coordinator.name != first.coordinator.name
    assert second.coordinator.get("plan") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no CUDA device is visible"):
        join(replace(CPU, device="cuda"))


def test_gpus_that_a_single_process_does_not_use_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    coordinator = LocalCoordinator()
    assert unused_devices(Topology(0, 1, torch.device("cuda", 0), coordinator)) == 3
    assert unused_devices(Topology(0, 4, torch.device("cuda", 0), coordinator)) == 0
    assert unused_devices(Topology(0, 1, torch.device("cpu"), coordinator)) == 0


def test_out_of_memory_and_lost_devices_are_told_apart() -> None:
    full, lost = torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("device-side assert")
    assert is_out_of_memory(full)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: out of memory"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_device_lost(lost)
    assert not is_device_lost(full)
    assert not is_device_lost(RuntimeError("shapes differ"))
    assert not is_device_lost(torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"))


def test_older_versions_of_pytorch_are_recognized_by_the_error_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "AcceleratorError")
    assert is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_device_lost(RuntimeError("CUDA error: out of memory"))
    assert not is_device_lost(RuntimeError("shapes differ"))
