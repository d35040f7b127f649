"""Which GPUs a launch uses. Asks the driver through NVML, without torch: the process that asks never uses a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fluxexp.errors import ConfigError, Problem

GpuChoice = Sequence[int] | Literal["all"] | None
"""Numbers of GPUs, all of them, or no choice."""
_VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


@dataclass(frozen=True, slots=True)
class Ranks:
    """How many ranks a launch starts on this machine, and the variables that say which GPUs they see."""

    number: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


def choose_ranks(gpus: GpuChoice, processes: int | None, environment: Mapping[str, str]) -> Ranks:
    """The ranks for `gpus`: one for each GPU.

    Args:
        gpus: numbers as `nvidia-smi` shows them. If CUDA_VISIBLE_DEVICES is set, numbers from 0 among the GPUs that it
            lists. "all": all visible GPUs, or one rank without a GPU. None: no choice; `processes` ranks, by default
            one, use the first visible GPUs, if there are any.
        processes: number of ranks if `gpus` is None, for example on a CPU.
        environment: of this process.

    Raises:
        ConfigError: a GPU does not exist or is named twice, or the arguments contradict each other.
    """
    if gpus is None:
        return Ranks(_checked_number(processes))
    if processes is not None:
        hint = "leave one of them out: fluxexp starts one process for each GPU"
        raise ConfigError(Problem("processes", "cannot be given together with gpus", processes, hint))
    visible = visible_gpus(environment)
    if gpus == "all":
        return _ranks(visible, environment) if visible else Ranks()
    _check_numbers(gpus, visible, environment)
    return _ranks([visible[number] for number in gpus], environment)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that a process can use, as CUDA_VISIBLE_DEVICES names them. Empty without a driver."""
    listed = environment.get(_VISIBLE)
    if listed is None:
        return [str(number) for number in range(_number_of_gpus())]
    names = [name.strip() for name in listed.split(",")]
    ends = [place for place, name in enumerate(names) if name in ("", "-1")]  # CUDA ignores what follows
    return names[: ends[0]] if ends else names


def _ranks(names: Sequence[str], environment: Mapping[str, str]) -> Ranks:
    variables = {_VISIBLE: ",".join(names)}
    if _VISIBLE not in environment and _ORDER not in environment:
        variables[_ORDER] = "PCI_BUS_ID"  # the numbers of nvidia-smi; CUDA's own begin with the fastest GPU
    return Ranks(len(names), variables)


def _checked_number(processes: int | None) -> int:
    if processes is None:
        return 1
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ConfigError(Problem("processes", "must be an integer of at least 1", processes))
    return processes


def _check_numbers(gpus: Sequence[int], visible: Sequence[str], environment: Mapping[str, str]) -> None:
    if isinstance(gpus, str) or not gpus or not all(type(number) is int for number in gpus):
        hint = 'write numbers such as [2, 3], or "all"'
        raise ConfigError(Problem("gpus", "must be a list of numbers of GPUs", gpus, hint))
    if len(set(gpus)) < len(gpus):
        raise ConfigError(Problem("gpus", "names a GPU twice", list(gpus), "name each GPU once"))
    if all(0 <= number < len(visible) for number in gpus):
        return
    if not visible:
        hint = "leave gpus out to work on the CPU; or check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"
        raise ConfigError(Problem("gpus", "no GPU is visible", list(gpus), hint))
    which = f"there are {len(visible)}, numbered from 0"
    if _VISIBLE in environment:
        which += f", because {_VISIBLE}={environment[_VISIBLE]}: numbers count among them"
    raise ConfigError(Problem("gpus", "names a GPU that is not visible", list(gpus), which))


def _number_of_gpus() -> int:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # pynvml's own errors have no name if it is not installed
        return 0
    try:
        return int(nvml.nvmlDeviceGetCount())
    finally:
        nvml.nvmlShutdown()
