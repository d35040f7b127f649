"""Images per second of the whole path, from a sample in memory to an image file: the documented recipe and fluxexp.

The recipe is what the libraries' guides show: one `FluxFillPipeline` per process, its share of the data in batches,
each image saved before the next batch starts. Both make the same tasks with the embedded model; start-up is left out.

    python benchmarks/fill.py [--tasks 64] [--steps 8] [--batch 8] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxFillPipeline

from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import ShapesDataset
from fluxexp.data import open_dataset
from fluxexp.experiment.provenance import git_revision, versions

_SIZE = 128


def main() -> None:
    """Run both in turn, print a table, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rates: dict[str, list[float]] = {"recipe": [], "fluxexp": []}
    for _ in range(args.repeats):  # in turn, so that a machine that slows down slows both
        rates["recipe"].append(_recipe(args.tasks, args.steps, args.batch))
        rates["fluxexp"].append(_fluxexp(args.tasks, args.steps, args.batch))
    report = _report(args, rates)
    print(_table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _recipe(tasks: int, steps: int, batch: int) -> float:
    """Images per second of the library's pipeline, after one batch to warm up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as fluxexp does, so that both have the same CPU
    pipeline = FluxFillPipeline.from_pretrained(model_directory("embedded:tiny_fill"), dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    dataset = open_dataset(
        ShapesDataset(kind="shapes", length=tasks, height=_SIZE, width=_SIZE, seed=0, limit=None, placement="fit")
    )
    with tempfile.TemporaryDirectory() as directory:

        def make(indices: range) -> None:
            samples = [dataset.load(index) for index in indices]
            images = pipeline(
                prompt=[sample.prompt for sample in samples],
                image=[sample.image for sample in samples],
                mask_image=[sample.mask for sample in samples],
                height=_SIZE,
                width=_SIZE,
                num_inference_steps=steps,
                guidance_scale=30.0,
                max_sequence_length=pipeline.tokenizer_2.model_max_length,
                generator=[torch.Generator("cpu").manual_seed(index) for index in indices],
            ).images
            for index, image in zip(indices, images, strict=True):
                image.save(Path(directory) / f"{index}.png")

        make(range(min(batch, tasks)))
        start = time.perf_counter()
        for first in range(0, tasks, batch):
            make(range(first, min(first + batch, tasks)))
        return tasks / (time.perf_counter() - start)


def _fluxexp(tasks: int, steps: int, batch: int) -> float:
    """Images per second as the run's own summary states them: loading and one throw-away step left out."""
    with tempfile.TemporaryDirectory() as directory:
        overrides = [
            f"dataset.length={tasks}",
            f"sampling.steps={steps}",
            f"sampling.batch_size={batch}",
            "tracking=disabled",
            f"output.dir={directory}",
        ]
        command = [sys.executable, "-m", "fluxexp", "+experiment=fill", *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (summary,) = Path(directory).glob("*/summary.json")
        return float(json.loads(summary.read_text())["images_per_s"])


def _report(args: argparse.Namespace, rates: dict[str, list[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
        "model": "tiny_fill",
        "settings": {name: getattr(args, name) for name in ("tasks", "steps", "batch", "repeats")},
        "images_per_s": {
            name: {"median": medians[name], "min": min(values), "max": max(values)} for name, values in rates.items()
        },
        "ratio": medians["fluxexp"] / medians["recipe"],
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _table(report: dict[str, Any]) -> str:
    rows = [
        f"{report['device']}, {report['model']}, {report['settings']}",
        "           median     min     max  images/s",
    ]
    for name, values in report["images_per_s"].items():
        rows.append(f"{name:<10}{values['median']:7.2f} {values['min']:7.2f} {values['max']:7.2f}")
    return "\n".join([*rows, f"fluxexp / recipe: {report['ratio']:.2f}"])


if __name__ == "__main__":
    main()
