"""Measures milliseconds per denoising step of one image, on one GPU and on several GPUs with context parallelism.

    torchrun --nproc-per-node 2 benchmarks/context.py
    torchrun --nproc-per-node 2 benchmarks/context.py --families flux_dev flux_kontext
    torchrun --nproc-per-node 4 benchmarks/context.py --ranks 2 4 --kinds ulysses ring --sizes 1024 512 --json FILE

On GPUs it uses full-size models with random weights (`--families`), on a CPU small ones. The times are those of a
loaded model's steps, with the scheduler and the gathering of the velocity, and without the first steps, which load
kernels and capture CUDA graphs. `--optimizations` takes presets, each with changes of its keys:
`lossless,cuda_graph=false`. `difference` is the norm of the difference from one GPU's latents, relative to their norm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.models.loading.model_loader import load_context_parallel_model
from fluxexp.parallel.channel import Channel
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.tensor_broadcast import packed, send, unpacked
from fluxexp.parallel.topology import Topology, join, leave
from imagespeed.arithmetic import step_flop, synchronize
from imagespeed.framework import composed
from imagespeed.jobs import conditionings, jobs
from imagespeed.models import MODELS, BenchmarkModel

Row = dict[str, Any]


def main() -> None:
    """Run the benchmark. Rank 0 prints a table, and writes the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--families", nargs="+", choices=list(MODELS), default=["flux_fill"], help="models (default: flux_fill)"
    )
    parser.add_argument("--sizes", nargs="+", type=int, help="sides of the images, in pixels")
    parser.add_argument("--ranks", nargs="+", type=int, help="numbers of ranks per image (default: all ranks)")
    parser.add_argument("--kinds", nargs="+", choices=["ulysses", "ring"], default=["ulysses"])
    parser.add_argument("--optimizations", nargs="+", default=["lossless"], help="presets, with changes of their keys")
    parser.add_argument("--steps", type=int, default=8, help="steps per repeat")
    parser.add_argument("--repeats", type=int, default=5, help="number of repeats; the median counts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    topology = join(composed([]).parallelism)
    sizes = args.sizes or ([1024, 512] if has_gpu else [128])
    report: dict[str, Any] = {"device": topology.device_name, "versions": versions(), "git_revision": git_revision()}
    report |= {"world_size": topology.world_size, "rows": []}
    for family, optimization in product(args.families, args.optimizations):
        model = _load(optimization, topology, MODELS[family], has_gpu)
        for size in sizes:
            report["rows"] += _measure_size(args, model, topology, (family, optimization), size)
    if topology.is_main and args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    done = Channel("done", bool)
    done.publish_own(topology.coordinator, True)
    if topology.is_main:  # rank 0 may host the store, so it waits for the others before it ends
        done.wait_all(topology.coordinator)
    leave()


def _load(optimization: str, topology: Topology, benchmark_model: BenchmarkModel, has_gpu: bool) -> Any:
    preset, *changes = optimization.split(",")
    overrides = [f"optimization={preset}", *(f"optimization.{change}" for change in changes)]
    overrides += benchmark_model.overrides(has_gpu)
    model: Any = load_context_parallel_model(composed(overrides), topology.device, topology.rank)
    if topology.is_main:
        print(f"{benchmark_model.name} on {topology.device_name}: {model.applied_optimizations}", end=", ")
        print(f"skipped {model.skipped_optimizations}")
        print(f"{'size':>5} {'ranks':>5} {'kind':<8} {'ms/step':>8} {'times':>6} {'TFLOP/s':>8} {'difference':>10}")
    return model


def _measure_size(
    args: argparse.Namespace, model: Any, topology: Topology, measured: tuple[str, str], size: int
) -> list[Row]:
    """Measure one rank alone, then each number of ranks together. Rank 0 returns the rows; others return none."""
    rows: list[Row] = []
    begun = latents = None
    family, optimization = measured
    benchmark_model = MODELS[family]
    batch = jobs(conditionings(model, benchmark_model, size, 1), benchmark_model, args.steps)
    text_tokens = batch[0].conditioning.prompt_embeds.shape[0]
    flop = step_flop(model.transformer.config, benchmark_model.evaluated_tokens(size, size), text_tokens)

    def note(ranks: int, kind: str, seconds: Sequence[float], difference: float) -> None:
        step_s = statistics.median(seconds)
        row = {
            "family": family,
            "optimization": optimization,
            "size": size,
            "ranks": ranks,
            "kind": kind,
            "step_s": step_s,
        }
        row |= {"each_s": list(seconds), "difference": difference, "tflops": flop / step_s / 1e12}
        row |= {"times": rows[0]["step_s"] / step_s if rows else 1.0}
        rows.append(row)
        figures = f"{1e3 * step_s:8.2f} {row['times']:6.2f} {row['tflops']:8.1f} {difference:10.1e}"
        print(f"{size:5} {ranks:5} {kind:<8} {figures}", flush=True)

    name = f"{family}/{optimization}/{size}"
    if topology.is_main:
        begun = model.begin(batch)
        seconds, latents = _time(model, begun, args.steps, args.repeats)
        note(1, "-", seconds, 0.0)
    Channel(name, bool).publish_own(topology.coordinator, True)
    Channel(name, bool).wait_all(topology.coordinator)
    for ranks in args.ranks or [topology.world_size]:
        for kind in args.kinds:
            replica = Replica.of(topology, ranks, f"{name}/{ranks}/{kind}")
            with replica.loading():
                pass
            model.enable_context_parallel(replica.collectives, kind)
            # Rank 0's replica works on the batch that rank 0 had alone. The other replicas do the same amount of work.
            shared = _shared(model.begin(batch) if begun is None else begun, replica)
            seconds, found = _time(model, shared, args.steps, args.repeats)
            if topology.is_main:
                assert latents is not None
                note(ranks, kind, seconds, float((found - latents).norm() / latents.norm()))
            model.disable_context_parallel()
            replica.leave()
    return rows


def _shared(begun: Any, replica: Replica) -> Any:
    """The begun batch of the replica's leader, sent to all ranks of the replica."""
    if not replica.is_leader:
        text = replica.next()
        assert text is not None
        with replica.together(lambda: None):
            return unpacked(text, replica.collectives)
    text, tensors = packed(begun, replica.collectives.device)
    replica.announce(text)
    with replica.together(lambda: None):
        send(tensors, replica.collectives)
    return begun


def _time(model: Any, begun: Any, steps: int, repeats: int) -> tuple[list[float], torch.Tensor]:
    """Seconds per step of each repeat, and the latents in float32."""
    seconds = []
    for _ in range(repeats + 1):  # the first repeat loads kernels and captures graphs, and does not count
        synchronize(model.device)
        start = time.perf_counter()
        latents = model.integrate(begun).packed
        synchronize(model.device)
        seconds.append((time.perf_counter() - start) / steps)
    return seconds[1:], latents.float()


if __name__ == "__main__":
    main()
