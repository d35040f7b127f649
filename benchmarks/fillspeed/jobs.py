"""Makes batches for a loaded model without a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fillspeed.cases import Samples
from fluxexp.models.base import Job, ModelInput
from fluxexp.records import Point


def conditionings(model: Any, size: int, batch: int) -> list[Any]:
    """Conditionings of `batch` generated samples of size x size pixels."""
    samples = Samples.generated([(size, size)], batch).samples
    inputs = [ModelInput(prompt=s.prompt, height=size, width=size, image=s.image, mask=s.mask) for s in samples]
    found: list[Any] = model.condition(inputs, None)
    return found


def jobs(conditionings: Sequence[Any], steps: int) -> list[Job]:
    """One batch of jobs, one per conditioning. The seed of a job is its index."""
    point = Point(
        scheduler="flow_match_euler",
        shift=None,
        steps=steps,
        guidance=30.0,
        seed=0,
        strength=1.0,
        height=None,
        width=None,
        max_sequence_length=None,
    )
    return [Job(conditioning, point, seed) for seed, conditioning in enumerate(conditionings)]
