"""The rank of this process, its device and the world size. Built on Accelerate's PartialState."""

from __future__ import annotations

import itertools
import os
import socket
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from fluxexp.config.schema import ParallelismConfig
from fluxexp.errors import ConfigError, PeerError, Problem
from fluxexp.parallel.allocator import keep_freed_memory
from fluxexp.parallel.coordinator import Coordinator, LocalCoordinator
from fluxexp.parallel.launch_agreement import agree_on_launch
from fluxexp.parallel.liveness import Liveness, LivenessLimits, unwatched
from fluxexp.parallel.tcp_coordinator import TCPStoreCoordinator, connect, open_store
from fluxexp.rank_environment import RankEnvironment

_run_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Topology:
    """This process among the ranks. `coordinator` belongs to the current session."""

    rank: int
    world_size: int
    device: torch.device
    coordinator: Coordinator
    local_world_size: int | None = None
    """Ranks on this machine; None if all are."""
    liveness: Liveness = field(default_factory=unwatched, compare=False)
    """Says which ranks are lost. The same for all sessions of the process."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which plans, shows progress and writes the files of the whole run."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """Name of the device and its host: `NVIDIA H100 80GB HBM3 (cuda:1 on node7)`."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name} ({self.device} on {socket.gethostname()})"

    @property
    def device_uuid(self) -> str | None:
        """UUID of the GPU as NVML writes it, independent of CUDA_VISIBLE_DEVICES; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"

    def synchronize(self) -> None:
        """Wait until the device has finished all work in its queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory_gib(self) -> float | None:
        """Peak memory that this process allocated on its GPU, in GiB; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class _Launch:
    """What the sessions of this process share: the root of their coordinators, and the liveness of the ranks."""

    coordinator: Coordinator
    liveness: Liveness
    keeps_store: bool
    """Whether the store that all ranks share ends with this process."""

    def leave(self) -> None:
        """Tell the other ranks that this process ends. The process that keeps the store ends after the others."""
        if self.keeps_store:
            self.liveness.wait_for_end_of_others(_OTHERS_END_S)
        self.liveness.leave()


_OTHERS_END_S = 10.0
_LAZY_GLOO = "TORCH_GLOO_LAZY_INIT"
_launches: list[_Launch] = []
"""The launch that this process has joined. Empty before, and after `leave`."""


def join(config: ParallelismConfig) -> Topology:
    """Join the ranks. The first call joins the process group.

    Each call makes a new coordinator, so that messages of one session never reach another. All ranks must make the same
    number of calls.

    Raises:
        ConfigError: `parallelism.device` does not exist, or the launcher's variables are wrong.
        RankError: another rank did not start.
    """
    environment = RankEnvironment.from_environment()
    use_cpu = _use_cpu(config)
    launch = _launch(environment, config, use_cpu)
    if environment.is_slurm_task:
        _with_visible_device(environment).publish()
    state = PartialState(cpu=use_cpu)
    if (state.device.type == "cpu") != use_cpu:
        raise ConfigError(
            Problem(
                "parallelism.device",
                f"must be the same for all points of a sweep, but an earlier point used {state.device.type}",
            )
        )
    if use_cpu:
        torch.set_num_threads(config.cpu_threads)
        keep_freed_memory()
    else:
        torch.cuda.reset_peak_memory_stats(state.device)
    rank, world_size = state.process_index, state.num_processes
    coordinator = launch.coordinator.part(str(next(_run_numbers)), rank, world_size)
    # With several processes Accelerate numbers CPU devices, but "cpu:1" is not equal to "cpu" in torch.
    device = torch.device("cpu") if use_cpu else torch.device("cuda", torch.cuda.current_device())
    return Topology(rank, world_size, device, coordinator, environment.local_world_size, launch.liveness)


def leave() -> None:
    """Tell the other ranks that this process ends, and destroy the process group. Safe to call at any exit."""
    while _launches:
        _launches.pop().leave()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _launch(environment: RankEnvironment, config: ParallelismConfig, use_cpu: bool) -> _Launch:
    """The launch of this process. The first call joins it."""
    if not _launches:
        coordinator = _join_launch(environment, use_cpu, config.join_timeout_s)
        liveness = Liveness(
            coordinator.part("liveness", environment.rank, environment.world_size),
            LivenessLimits(config.lost_after_s, config.hung_after_s),
        )
        liveness.start()
        keeps_store = environment.is_main and environment.world_size > 1 and not environment.has_launcher_store
        _launches.append(_Launch(coordinator, liveness, keeps_store))
    return _launches[0]


def _join_launch(environment: RankEnvironment, use_cpu: bool, timeout_s: float) -> Coordinator:
    """Agree with the other ranks on the name of the launch, and make the process group under this name.

    A launcher that restarts ranks keeps its store. Accelerate would make the group from addresses of ended processes.
    The group opens connections only for a collective (always so with NCCL), and no code uses it for one. So a rank
    that is already dead does not block the others here.
    """
    rank, world_size = environment.rank, environment.world_size
    if world_size == 1:
        return LocalCoordinator()
    store = open_store(timeout_s)
    name = agree_on_launch(store, rank, world_size, timeout_s)
    earlier = os.environ.get(_LAZY_GLOO)
    os.environ[_LAZY_GLOO] = "1"
    try:
        dist.init_process_group(
            "gloo" if use_cpu else "nccl",
            store=PrefixStore(f"fluxexp/{name}/process_group", connect()),
            rank=rank,
            world_size=world_size,
        )
    finally:  # the groups of replicas connect at once
        if earlier is None:
            del os.environ[_LAZY_GLOO]
        else:
            os.environ[_LAZY_GLOO] = earlier
    return TCPStoreCoordinator(store, name, rank, world_size)


def _with_visible_device(environment: RankEnvironment) -> RankEnvironment:
    """The same rank with the number of its device. `srun --gpus-per-task=1` shows each rank only its own, as 0."""
    return replace(environment, local_rank=0) if torch.cuda.device_count() == 1 else environment


def _use_cpu(config: ParallelismConfig) -> bool:
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError(
            Problem(
                "parallelism.device",
                "no CUDA device is visible",
                "cuda",
                "use auto or cpu; or check the GPU driver and CUDA_VISIBLE_DEVICES",
            )
        )
    return config.device == "cpu" or not available


def unused_devices(topology: Topology) -> int:
    """Number of GPUs of this machine that a single process does not use."""
    if topology.world_size > 1 or topology.device.type != "cuda":
        return 0
    return torch.cuda.device_count() - 1


def free_memory_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a GPU, PyTorch's cached blocks included; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means out of memory, so that a smaller batch may succeed."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, (RuntimeError, PeerError)) and "out of memory" in str(error).lower()
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether `error` makes the CUDA context unusable (device-side assert, illegal access): the process must end.

    A failed capture of a CUDA graph does not.
    """
    text = str(error)
    if hasattr(torch, "AcceleratorError"):
        is_of_device = isinstance(error, torch.AcceleratorError)
    else:  # before PyTorch 2.8
        is_of_device = isinstance(error, RuntimeError) and "CUDA error" in text
    return is_of_device and not is_out_of_memory(error) and "captur" not in text
