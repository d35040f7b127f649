"""Run the program with a real fault of the GPU: `python -m tests.models.faulty_gpu FAULT ARGUMENTS...`.

FAULT is one of
    nan: the noise of some tasks is NaN, and goes through the whole model;
    assert: some tasks make a kernel fail an assertion, after which the CUDA context cannot be used;
    assert-once: the same, for the first of these tasks and only in the first process;
    hang: some tasks start a kernel that does not end;
    memory: this process may use a small part of the GPU's memory.
The tasks are those whose seed is divisible by 4.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fluxexp.models.base import Job
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.latents import NoiseSample

MEMORY_GIB = 2.0
_ENDLESS_CYCLES = 10**14
_ONCE = Path("assert-once")


def is_faulty(seed: int) -> bool:
    """Whether the fault happens in the task with this seed."""
    return seed % 4 == 0


def fail_an_assertion(device: torch.device) -> None:
    """Read beyond the end of a tensor, on the GPU."""
    torch.zeros(4, device=device)[torch.tensor([9], device=device)]


def inject(fault: str) -> None:
    """Change the model of this process."""
    if fault == "memory":
        total_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(MEMORY_GIB / total_gib)
        return
    begin, sample_noise = Flux1Model.begin, Flux1Model.sample_noise

    def noisy(self: Flux1Model, seed: int, height: int, width: int) -> NoiseSample:
        noise = sample_noise(self, seed, height, width)
        if is_faulty(seed):
            for tensor in noise.noises:
                tensor.fill_(float("nan"))
        return noise

    def broken(self: Flux1Model, jobs: Sequence[Job]) -> Any:
        if any(is_faulty(job.seed) and not job.is_warmup for job in jobs):
            if fault == "hang":
                torch.cuda._sleep(_ENDLESS_CYCLES)  # type: ignore[no-untyped-call]
            elif fault == "assert" or not _ONCE.exists():
                _ONCE.touch()
                fail_an_assertion(self.device)
        return begin(self, jobs)

    if fault == "nan":
        Flux1Model.sample_noise = noisy  # type: ignore[method-assign]
    else:
        Flux1Model.begin = broken  # type: ignore[method-assign]


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    inject(kind)
    sys.argv = ["fluxexp", *arguments]
    from fluxexp.cli import main

    main()
