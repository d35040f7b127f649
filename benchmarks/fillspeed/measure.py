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

from fillspeed.arithmetic import step_flop, synchronise
from fillspeed.cases import Case, Samples
from fillspeed.engine import Engine, Made
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
    """Share of the time from the end of a stretch's first batch to its last kernel that lies in gaps of the device of
    5 us and more: shorter ones lie between kernels that were given to it together. The profiler slows launches: an
    upper bound."""
    waits: list[tuple[str, float]]
    """What the device waited for longest: kernels, and milliseconds of gaps before them; empty without a profile."""

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


def measure(name: str, engine: Engine, cases: Sequence[Case], repeats: int, profile: bool) -> Iterator[Row]:
    """Rows of `cases`, each as soon as it is measured."""
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            yield _row(name, engine, case, repeats, profile, Path(directory))


def _row(name: str, engine: Engine, case: Case, repeats: int, profile: bool, directory: Path) -> Row:
    batch = _batch_size(engine, case)
    samples = Samples.drawn(case.sizes, case.stretch(batch)).samples

    def stretch(number: int = len(samples)) -> Made:
        return engine.make(samples, number, case, batch, directory)

    first_s, _ = _timed(engine.device, lambda: stretch(len(samples) if case.is_mixed else batch))
    _forget_peak(engine.device)
    timed = [_timed(engine.device, stretch) for _ in range(repeats)]
    peak_gib = _peak_gib(engine.device)
    waiting, waits = _waiting(engine.device, stretch) if profile else (None, [])
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
    synchronise(device)
    start = time.perf_counter()
    made = make()
    synchronise(device)
    return time.perf_counter() - start, made


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


_HOST_GAP_NS = 5000
_WAITS = 12


def _waiting(device: torch.device, make: Callable[[], Made]) -> tuple[float | None, list[tuple[str, float]]]:
    """`Row.waiting` and `Row.waits`; None and nothing on a CPU, which is its own host.

    The first batch is left out where its end is known: there is no work before it to prepare it behind.
    """
    if device.type != "cuda":
        return None, []
    from torch.profiler import ProfilerActivity, profile

    synchronise(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        made = make()
        synchronise(device)
    events = profiler.profiler.kineto_results.events()
    on_device = torch._C._autograd.DeviceType.CUDA
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in events
        if event.device_type() == on_device
    ]
    first, last = min(start for start, _, _ in spans), max(end for _, end, _ in spans)
    if len(made.ends_s) > 1:
        first = int(min(made.ends_s) * 1e9)
        spans = [(first, first, ""), *(span for span in spans if span[1] >= first)]
    gaps: dict[str, int] = {}
    for length, name in gaps_of(spans, _HOST_GAP_NS):
        gaps[name] = gaps.get(name, 0) + length
    longest = sorted(gaps.items(), key=lambda item: -item[1])[:_WAITS]
    return sum(gaps.values()) / float(last - first), [(name[:120], length / 1e6) for name, length in longest]


def gaps_of(spans: Sequence[tuple[int, int, str]], shortest: int) -> Iterator[tuple[int, str]]:
    """Gaps between `spans` (start, end, name) that are at least `shortest` long: length and what came then."""
    reached: int | None = None
    for start, end, name in sorted(spans):
        if reached is not None and start - reached >= shortest:
            yield start - reached, name
        reached = end if reached is None else max(reached, end)
