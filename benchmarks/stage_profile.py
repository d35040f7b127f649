"""Profiles a stage: lists its kernels by total time, and measures the time until the first step of a loaded model.

    python benchmarks/stage_profile.py [--optimization lossless] [--size 1024] [--batch 1] [--steps 4] [--rows 30]
    python benchmarks/stage_profile.py --stage decode

On a GPU it uses a full-size model with random weights (`--family`), on a CPU a small one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fluxexp.models.loading.model_loader import load_model
from imagespeed.arithmetic import step_flop, synchronize
from imagespeed.framework import composed
from imagespeed.jobs import conditionings, jobs
from imagespeed.models import MODELS, BenchmarkModel

_KINDS = (
    ("attention", ("fmha", "flash", "attention", "cudnn_generated")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "mm_", "sgemv", "splitk")),
    ("copies", ("memcpy", "memset", "copy")),
    ("compiled pointwise and norms", ("triton",)),
)
"""Kinds of kernels, each with parts of their names. The first kind that matches counts."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Calls and time of one kernel in a step, or in another stage of a batch."""

    name: str
    calls: float
    seconds: float


def main() -> None:
    """Load the model, run and time the stages, profile one of them, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(MODELS), default="flux_fill", help="the model (default: flux_fill)")
    parser.add_argument("--optimization", default="lossless", help="a preset, with changes: lossless,cuda_graph=false")
    parser.add_argument("--size", type=int, default=1024, help="side of the images, in pixels")
    parser.add_argument("--batch", type=int, default=1, help="batch size")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--rows", type=int, default=30, help="number of kernels to print")
    parser.add_argument("--stage", choices=["denoise", "condition", "decode"], default="denoise")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    preset, *changes = args.optimization.split(",")
    overrides = [f"optimization={preset}", "optimization.text_cache=false"]
    overrides += [f"optimization.{change}" for change in changes]
    benchmark_model = MODELS[args.family]
    overrides += benchmark_model.overrides(torch.cuda.is_available())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    model: Any = load_model(composed(overrides), device, rank=0)
    print(f"loaded in {time.perf_counter() - start:.1f} s", flush=True)
    print(f"applied {model.applied_optimizations}, skipped {model.skipped_optimizations}", flush=True)
    synchronize(device)
    start = time.perf_counter()
    conditioned = conditionings(model, benchmark_model, args.size, args.batch)
    _denoise(model, conditioned, benchmark_model, 1)
    first_s = time.perf_counter() - start
    _denoise(model, conditioned, benchmark_model, args.steps)
    step_s = _step_s(model, conditioned, benchmark_model, args.steps)
    works = _stages(model, conditioned, benchmark_model, args.size)
    stages = {stage: min(_seconds(device, work) for _ in range(3)) for stage, work in works.items()}
    if args.stage == "denoise":
        kernels = _kernels(device, lambda: _denoise(model, conditioned, benchmark_model, args.steps), args.steps)
    else:
        kernels = _kernels(device, works[args.stage], 1)
    text = conditioned[0].prompt_embeds.shape[0]
    tokens = benchmark_model.evaluated_tokens(args.size, args.size)
    tflop = args.batch * step_flop(model.transformer.config, tokens, text) / 1e12
    print(f"first step {first_s:.2f} s after loading; then {1e3 * step_s:.2f} ms/step, {tflop / step_s:.1f} TFLOP/s")
    print(", ".join(f"{stage} {1e3 * seconds:.1f} ms" for stage, seconds in stages.items()))
    print(_table(kernels, args.rows, "one step" if args.stage == "denoise" else "the stage"))
    if args.json:
        report = {
            "family": args.family,
            "first_step_s": first_s,
            "step_s": step_s,
            "tflop": tflop,
            **stages,
            "applied": model.applied_optimizations,
        }
        report["kernels"] = [[kernel.name, kernel.calls, kernel.seconds] for kernel in kernels]
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def _denoise(model: Any, conditioned: Sequence[Any], benchmark_model: BenchmarkModel, steps: int) -> None:
    model.denoise(jobs(conditioned, benchmark_model, steps))
    synchronize(model.device)


def _step_s(model: Any, conditioned: Sequence[Any], benchmark_model: BenchmarkModel, steps: int) -> float:
    """Seconds per step: the difference of two loops of different lengths, which removes work done once per batch."""
    seconds = []
    for length in (steps, 3 * steps):
        start = time.perf_counter()
        _denoise(model, conditioned, benchmark_model, length)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / (2 * steps)


def _stages(
    model: Any, conditioned: Sequence[Any], benchmark_model: BenchmarkModel, size: int
) -> dict[str, Callable[[], object]]:
    """The other stages of a batch, as functions by name."""
    latents = model.denoise(jobs(conditioned, benchmark_model, 1))
    return {
        "condition": lambda: conditionings(model, benchmark_model, size, len(conditioned)),
        "decode": lambda: model.decode(latents).images(),
    }


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def _kernels(device: torch.device, work: Callable[[], object], steps: int) -> list[Kernel]:
    """Kernels by total time. Calls and seconds are divided by `steps`, also those of work done once per batch."""
    is_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as profiler:
        _seconds(device, work)
    kernels = [
        Kernel(
            row.key,
            row.count / steps,
            (row.self_device_time_total if is_gpu else row.self_cpu_time_total) / 1e6 / steps,
        )
        for row in profiler.key_averages()
    ]
    return sorted((kernel for kernel in kernels if kernel.seconds), key=lambda kernel: -kernel.seconds)


def _table(kernels: Sequence[Kernel], rows: int, whole: str) -> str:
    kinds: dict[str, float] = {}
    for kernel in kernels:
        kinds[_kind(kernel.name)] = kinds.get(_kind(kernel.name), 0.0) + kernel.seconds
    lines = [f"{1e3 * kernel.seconds:9.3f} ms {kernel.calls:8.1f} x  {kernel.name[:150]}" for kernel in kernels[:rows]]
    sums = [f"{1e3 * seconds:9.3f} ms  {kind}" for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1])]
    return "\n".join([*lines, f"{1e3 * sum(kinds.values()):9.3f} ms  all kernels of {whole}; by kind:", *sums])


def _kind(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, parts in _KINDS if any(part in lowered for part in parts)), "other")


if __name__ == "__main__":
    main()
