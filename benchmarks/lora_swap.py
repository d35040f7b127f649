"""Measures seconds to merge a LoRA into a loaded model, to swap it for another one, and to take it out again.

    python benchmarks/lora_swap.py                                            all settings of this machine
    python benchmarks/lora_swap.py --optimizations lossless,offload=group --rank 128 --json FILE
    python benchmarks/lora_swap.py --quick                                    one setting, short

On a GPU it uses a full-size model with random weights (`--family`), on a CPU a small one. The two LoRAs have random
values and change all linear layers of the blocks. Each operation is timed on an idle device: from the request to the
time at which all weights are changed. `step_s` is the first batch after that, of one step, which also streams weights.

It also counts what a swap must not cause: compiled functions and captured CUDA graphs. And it compares bits: the first
LoRA has the same latents whenever it is merged, and without LoRAs the latents are those of the loaded model. If one of
these promises is broken, it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.loading.model_loader import load_context_parallel_model
from fluxexp.records import LoraUse
from imagespeed.arithmetic import synchronize
from imagespeed.command import command
from imagespeed.framework import composed
from imagespeed.jobs import conditionings, jobs
from imagespeed.lora_files import write_lora
from imagespeed.models import MODELS, BenchmarkModel
from imagespeed.report import now

_ON_GPU = ["lossless", "lossless,fp8_linears=true", "lossless,offload=group"]
_ON_GPU += ["lossless,fused_kernels=false,compile_blocks=true"]
_ON_CPU = ["lossless", "lossless,fp8_linears=true"]
_SCALE = 0.7

Uses = tuple[LoraUse, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """The figures of one change of a model's LoRAs, in seconds."""

    name: str
    read_s: float
    """Reading the file, if it was not in memory."""
    apply_s: float
    """Changing all weights."""
    step_s: float
    """The next batch, of one step."""


class Swaps:
    """A loaded model whose LoRAs are changed."""

    def __init__(self, model: Any, benchmark_model: BenchmarkModel, size: int) -> None:
        self._model, self._benchmark_model = model, benchmark_model
        self._conditioned = conditionings(model, benchmark_model, size, 1)

    def latents(self, uses: Uses, steps: int = 2) -> torch.Tensor:
        """The latents with exactly these LoRAs."""
        batch = jobs(self._conditioned, self._benchmark_model, steps, uses)
        latents: torch.Tensor = self._model.denoise(batch).packed
        synchronize(self._model.device)
        return latents.clone()

    def change(self, name: str, uses: Uses) -> Operation:
        """Let exactly these LoRAs be merged, and make a batch."""
        loras = self._model.loras
        seconds = [
            self._seconds(work)
            for work in (
                lambda: loras.read(uses),
                lambda: loras.apply("transformer", uses),
                lambda: self.latents(uses, 1),
            )
        ]
        return Operation(name, *seconds)

    def _seconds(self, work: Callable[[], object]) -> float:
        synchronize(self._model.device)
        start = time.perf_counter()
        work()
        synchronize(self._model.device)
        return time.perf_counter() - start


def main() -> None:
    """Run the benchmark, print a table, and write the figures to the file given by `--json`."""
    args = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report: dict[str, Any] = {
        "family": args.family,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "date": now(),
        "command": command(),
        "rank": args.rank,
        "versions": versions(),
        "git_revision": git_revision(),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder), MODELS[args.family], args.rank, is_full_size=device.type == "cuda")
        for optimization in args.optimizations:
            report["rows"].append(_measure(args, optimization, device, files))
            _print(report["rows"][-1])
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    broken = [f"{row['optimization']}: {promise}" for row in report["rows"] for promise in row["broken"]]
    print("\n".join(broken) if broken else "all promises hold: same bits, nothing compiled or captured again")
    sys.exit(1 if broken else 0)


def _files(folder: Path, benchmark_model: BenchmarkModel, rank: int, *, is_full_size: bool) -> list[str]:
    layout = LAYOUTS[benchmark_model.layout(is_full_size)]
    return [write_lora(folder / f"{n}.safetensors", layout, benchmark_model.family, rank, n) for n in (1, 2)]


def _measure(args: argparse.Namespace, optimization: str, device: torch.device, files: Sequence[str]) -> dict[str, Any]:
    benchmark_model, is_full_size = MODELS[args.family], device.type == "cuda"
    preset, *changes = optimization.split(",")
    overrides = [f"optimization={preset}", *(f"optimization.{change}" for change in changes)]
    overrides += benchmark_model.overrides(is_full_size)
    if not is_full_size:  # the embedded models have other layers than the layouts, of which the LoRAs are
        overrides += ["model.weights=random", f"model.layout={benchmark_model.layout(False)}"]
    start = time.perf_counter()
    model: Any = load_context_parallel_model(composed(overrides), device, rank=0, takes_loras=True)
    synchronize(device)
    row: dict[str, Any] = {"optimization": optimization, "load_s": time.perf_counter() - start}
    row |= {"applied": model.applied_optimizations, "skipped": model.skipped_optimizations}
    row |= _swap(Swaps(model, benchmark_model, args.size), files, args.repeats)
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    del model
    gc.collect()
    return row


def _swap(swaps: Swaps, files: Sequence[str], repeats: int) -> dict[str, Any]:
    """Merge, swap and remove the LoRAs. Returns the operations, the counts, and the promises that are broken."""
    first, second = ((LoraUse(file, 1.0),) for file in files)
    scaled = (LoraUse(files[0], _SCALE),)
    # The second call of a shape captures a graph. One step is another shape for the modulation table only.
    base = [swaps.latents((), steps) for _ in range(2) for steps in (1, 2)][-1]
    compiled, captured = _compiled(), GraphedFunction.num_captured
    broken: list[str] = []
    operations = [swaps.change("first LoRA", first)]
    merged = swaps.latents(first)
    for _ in range(repeats):
        operations.append(swaps.change("swap to another", second))
        operations.append(swaps.change("swap back", first))
        if not torch.equal(swaps.latents(first), merged):
            broken.append("after a swap back, the latents of the first LoRA have other bits")
        operations.append(swaps.change("another scale", scaled))
        operations.append(swaps.change("none", ()))
        if not torch.equal(swaps.latents(()), base):
            broken.append("without LoRAs, the latents are not those of the loaded model")
        operations.append(swaps.change("again", first))
    if torch.equal(merged, base):
        broken.append("the LoRA changes nothing")
    recompiled, recaptured = _compiled() - compiled, GraphedFunction.num_captured - captured
    if recompiled or recaptured:
        broken.append(f"{recompiled} functions were compiled and {recaptured} CUDA graphs captured again")
    return {
        "operations": [asdict(operation) for operation in operations],
        "recompiled": recompiled,
        "recaptured": recaptured,
        "broken": sorted(set(broken)),
    }


def _compiled() -> int:
    """How many graphs the compiler has made in this process."""
    return int(counters["stats"]["unique_graphs"])


def _print(row: dict[str, Any]) -> None:
    print(f"\n{row['optimization']}: loaded in {row['load_s']:.1f} s, skipped {row['skipped']}")
    print(f"{'':<18} {'read s':>8} {'apply s':>8} {'max':>8} {'step s':>8}")
    for name in dict.fromkeys(operation["name"] for operation in row["operations"]):
        own = [operation for operation in row["operations"] if operation["name"] == name]
        applied = [operation["apply_s"] for operation in own]
        read_s, step_s = own[0]["read_s"], statistics.median(operation["step_s"] for operation in own)
        print(f"{name:<18} {read_s:8.3f} {statistics.median(applied):8.3f} {max(applied):8.3f} {step_s:8.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=list(MODELS), default="flux_dev", help="the model (default: flux_dev)")
    parser.add_argument(
        "--optimizations", nargs="+", help="presets, with changes of their keys: lossless,offload=group"
    )
    parser.add_argument("--rank", type=int, default=16, help="rank of both LoRAs")
    parser.add_argument("--size", type=int, help="side of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="number of swaps; the median counts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="one setting of optimizations, one swap")
    args = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    args.size = args.size or (1024 if has_gpu else 64)
    if args.quick:
        args.repeats = 1
    chosen = _ON_GPU if has_gpu else _ON_CPU
    args.optimizations = args.optimizations or (chosen[:1] if args.quick else chosen)
    return args


if __name__ == "__main__":
    main()
