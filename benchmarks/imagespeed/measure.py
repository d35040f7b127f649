"""Measures one engine in this process: for each case a warm-up, then timed stretches.

`Row` describes how each figure is measured. This module knows engines only by their protocol.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from fluxexp.parallel.batching import automatic_batch_size
from fluxexp.parallel.topology import free_memory_bytes
from imagespeed.arithmetic import step_flop, synchronize
from imagespeed.cases import Case, Samples
from imagespeed.engine import Engine, StretchResult
from imagespeed.watch import Watch

_MAX_WAITS = 12
"""Maximum number of entries in `Row.waits`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one engine for one case. Times are in seconds."""

    engine: str
    case: str
    batch: float
    """Mean number of images per batch."""
    steps: int
    """Steps of the schedule; with a strength below 1, the first ones are not run."""
    image_s: list[float]
    """For each stretch: wall time per image, from samples in memory to image files on disk."""
    step_s: float | None
    """Time of a denoising step of a batch: the median over batches of the mean time between the ends of the first and
    the last step, by the device's clock. None for mixed sizes, and if there is only one step."""
    tflops: float | None
    """Rate of a step in TFLOP/s: operations of the step of a batch divided by `step_s`."""
    first_batch_s: float
    """Wall time of the process's first batch, including compilation; for mixed sizes, of its first stretch."""
    peak_gib: float | None
    """Peak memory of tensors in the stretches. None on a CPU."""
    waiting: float | None
    """Fraction of the time in which the device was idle, from the end of a stretch's first batch to the end of its last
    batch. None on a CPU, which is host and device, and for stretches of one batch."""
    waits: list[tuple[str, float]]
    """What the host did while the device was idle, with seconds, the longest first."""

    @property
    def median_s(self) -> float:
        """Median of `image_s`."""
        return statistics.median(self.image_s)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**values)


def measure(name: str, engine: Engine, cases: Sequence[Case], repeats: int, watch: bool) -> Iterator[Row]:
    """Measure the cases one after the other, and yield a row for each. `watch`: whether to measure `Row.waiting`."""
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            yield _row(name, engine, case, repeats, watch, Path(directory))


def _row(name: str, engine: Engine, case: Case, repeats: int, watch: bool, directory: Path) -> Row:
    batch = _batch_size(engine, case)
    samples = Samples.generated(case.sizes, case.stretch(batch), case.model).samples

    def stretch(number: int = len(samples)) -> StretchResult:
        return engine.make(samples, number, case, batch, directory)

    first_s, _ = _timed(engine.device, lambda: stretch(len(samples) if case.is_mixed else batch))
    _reset_peak(engine.device)
    timed = [_timed(engine.device, stretch) for _ in range(repeats)]
    peak_gib = _peak_gib(engine.device)
    waiting, waits = _waiting(engine.device, stretch) if watch else (None, [])
    batches = [size for _, made in timed for size in made.batches]
    steps_s = [] if case.is_mixed else [seconds for _, made in timed for seconds in made.step_s]
    step_s = statistics.median(steps_s) if steps_s else None
    mean_batch = statistics.mean(batches)
    return Row(
        engine=name,
        case=case.label,
        batch=mean_batch,
        steps=case.steps,
        image_s=[seconds / len(samples) for seconds, _ in timed],
        step_s=step_s,
        tflops=_step_tflop(engine, case) * mean_batch / step_s if step_s else None,
        first_batch_s=first_s,
        peak_gib=peak_gib,
        waiting=waiting,
        waits=waits,
    )


def _batch_size(engine: Engine, case: Case) -> int:
    """The batch size of the case. If the case has none: what fluxexp chooses for its largest size, for all engines."""
    if case.batch is not None:
        return case.batch
    text = engine.pipeline.tokenizer_2.model_max_length
    tokens = max(case.model.family.tokens(height * width, text) for height, width in case.sizes)
    return automatic_batch_size(case.passes * tokens, free_memory_bytes(engine.device))


def _step_tflop(engine: Engine, case: Case) -> float:
    (height, width), *_ = case.sizes
    text = engine.pipeline.tokenizer_2.model_max_length
    tokens = case.model.evaluated_tokens(height, width)
    return case.passes * step_flop(engine.pipeline.transformer.config, tokens, text) / 1e12


def _timed(device: torch.device, make: Callable[[], StretchResult]) -> tuple[float, StretchResult]:
    synchronize(device)
    start = time.perf_counter()
    made = make()
    synchronize(device)
    return time.perf_counter() - start, made


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def _waiting(device: torch.device, make: Callable[[], StretchResult]) -> tuple[float | None, list[tuple[str, float]]]:
    """`Row.waiting` and `Row.waits`, from an extra stretch, because watching can make it slower."""
    if device.type != "cuda":
        return None, []
    stream = torch.cuda.current_stream(device)
    with Watch(stream.query) as watch:
        made = make()
    if len(made.ends_s) < 2:
        return None, []
    fraction, waits = watch.waiting(min(made.ends_s), max(made.ends_s))
    return fraction, waits[:_MAX_WAITS]
