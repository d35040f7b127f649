"""Measures one engine in this process: each case warmed up, then stretches against the clock, rows as they come.

How each figure comes about is said in `Row`. Knows engines by their protocol alone, and nothing of other processes.
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

from fillspeed.arithmetic import step_flop, synchronize
from fillspeed.cases import Case, Samples
from fillspeed.engine import Engine, Made
from fillspeed.watch import Watch
from fluxexp.parallel.batching import automatic_batch_size
from fluxexp.parallel.topology import free_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine at one case. Seconds; lists hold one figure of each stretch."""

    engine: str
    case: str
    batch: float
    """Images at once, on average."""
    steps: int
    image_s: list[float]
    """Wall time of a stretch, from samples in memory to image files on disk, by the image."""
    step_s: float | None
    """Of a denoising step of a batch, between the ends of the first and the last by the device's clock: the median over
    batches. None for mixed sizes, and where there is but one step."""
    tflops: float | None
    """Arithmetic of a step of the batch (10^12 operations) over `step_s`."""
    first_batch_s: float
    """The same as a stretch, for the first batch of each size that the process makes: with compilation, if any."""
    peak_gib: float | None
    """Most memory that tensors took in a stretch."""
    waiting: float | None
    """Share of the time in which the device had nothing to do, from the end of a stretch's first batch to that of its
    last: at steady state. None on a CPU, which is its own host, and where a stretch is one batch."""
    waits: list[tuple[str, float]]
    """What the host was at while the device waited, and seconds of it, longest first."""

    @property
    def median_s(self) -> float:
        """Median of `image_s`."""
        return statistics.median(self.image_s)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**values)


def measure(name: str, engine: Engine, cases: Sequence[Case], repeats: int, watch: bool) -> Iterator[Row]:
    """Rows of `cases`, each as soon as it is measured."""
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            yield _row(name, engine, case, repeats, watch, Path(directory))


def _row(name: str, engine: Engine, case: Case, repeats: int, watch: bool, directory: Path) -> Row:
    batch = _batch_size(engine, case)
    samples = Samples.drawn(case.sizes, case.stretch(batch)).samples

    def stretch(number: int = len(samples)) -> Made:
        return engine.make(samples, number, case, batch, directory)

    first_s, _ = _timed(engine.device, lambda: stretch(len(samples) if case.is_mixed else batch))
    _forget_peak(engine.device)
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
    """What the case says; else what fluxexp would choose for its largest size, for peers as well."""
    if case.batch is not None:
        return case.batch
    text = engine.pipeline.tokenizer_2.model_max_length
    tokens = max(height * width for height, width in case.sizes) // 256 + text
    return automatic_batch_size(tokens, free_memory_bytes(engine.device))


def _step_tflop(engine: Engine, case: Case) -> float:
    (height, width), *_ = case.sizes
    text = engine.pipeline.tokenizer_2.model_max_length
    return step_flop(engine.pipeline.transformer.config, height * width // 256, text) / 1e12


def _timed(device: torch.device, make: Callable[[], Made]) -> tuple[float, Made]:
    synchronize(device)
    start = time.perf_counter()
    made = make()
    synchronize(device)
    return time.perf_counter() - start, made


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


_WAITS = 12


def _waiting(device: torch.device, make: Callable[[], Made]) -> tuple[float | None, list[tuple[str, float]]]:
    """`Row.waiting` and `Row.waits`, of a stretch more: it may be slower for being watched."""
    if device.type != "cuda":
        return None, []
    stream = torch.cuda.current_stream(device)
    with Watch(stream.query) as watch:
        made = make()
    if len(made.ends_s) < 2:
        return None, []
    share, waits = watch.waiting(min(made.ends_s), max(made.ends_s))
    return share, waits[:_WAITS]
