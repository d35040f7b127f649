"""Makes batches for a loaded model without a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxexp.models.base import Job, ModelInput
from fluxexp.records import LoraUse, Point
from imagespeed.cases import Samples
from imagespeed.models import BenchmarkModel


def conditionings(model: Any, benchmark_model: BenchmarkModel, size: int, batch: int) -> list[Any]:
    """Conditionings of `batch` generated samples of size x size pixels."""
    samples = Samples.generated([(size, size)], batch, benchmark_model).samples
    inputs = [
        ModelInput(prompt=sample.prompt, height=size, width=size, **benchmark_model.pictures(sample))
        for sample in samples
    ]
    found: list[Any] = model.condition(inputs, None)
    return found


def jobs(
    conditionings: Sequence[Any], benchmark_model: BenchmarkModel, steps: int, lora: tuple[LoraUse, ...] = ()
) -> list[Job]:
    """One batch of jobs, one per conditioning, with all steps. The seed of a job is its index."""
    point = Point(
        scheduler="flow_match_euler",
        shift=None,
        steps=steps,
        guidance=benchmark_model.guidance,
        seed=0,
        strength=1.0,
        height=None,
        width=None,
        max_sequence_length=None,
        lora=lora,
    )
    return [Job(conditioning, point, seed) for seed, conditioning in enumerate(conditionings)]
