"""Postprocess: while the device works on the next batch, wait for the images of a batch, measure it and pass it on.

One thread does this, in the order in which batches were started. The worker allows at most one batch in flight while it
starts the next, so that the work queued on the device is bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from PIL.Image import Image

from fluxexp.config.work import denoising_work
from fluxexp.models.base import CutTexts, Decoded
from fluxexp.telemetry import EventLog
from fluxexp.telemetry.events import Event
from fluxexp.worker.assignment import Assignment, by_run
from fluxexp.worker.clock import Clock
from fluxexp.worker.prefetch import PreparedSample

STAGES = ("condition", "denoise", "decode")


@dataclass(frozen=True, slots=True)
class StartedBatch:
    """A batch whose work was submitted to the device."""

    number: int
    items: Sequence[PreparedSample]
    shape: Hashable
    begun_s: float
    """Time at which its first work was submitted, in seconds since the epoch."""
    marks: Sequence[Any]
    """Clock marks before the first stage and after each stage."""
    decoded: Decoded
    computed_steps: Sequence[int]
    """For each image, the number of full evaluations of the denoiser."""
    cut_tokens: Sequence[CutTexts]
    """For each image, the tokens of its prompts that the text encoders do not read."""


Deliver = Callable[[StartedBatch, Sequence[Image | None], Mapping[str, float]], None]
"""Receives a finished batch, its images (None if not finite), and the seconds of each stage per image."""


class Postprocessor:
    """Finishes batches on a thread, which runs while the context is entered.

    Args:
        context_size: number of ranks that denoise each batch together, so that each of them does a part of its work.
    """

    def __init__(self, clock: Clock, events: EventLog, deliver: Deliver, context_size: int = 1) -> None:
        self._clock = clock
        self._events = events
        self._deliver = deliver
        self._context_size = context_size
        self._pool: ThreadPoolExecutor | None = None
        self._in_flight: deque[Future[None]] = deque()
        self._lock = threading.Lock()
        self._finished: list[tuple[float, list[Assignment]]] = []
        self._seconds: dict[Hashable, float] = {}
        self._end_s = 0.0
        self._on_device: deque[StartedBatch] = deque()

    def begin(self, batch: StartedBatch) -> None:
        """Take over a batch that the worker has started."""
        assert self._pool is not None, "the context must be entered first"
        with self._lock:
            self._on_device.append(batch)
        self._in_flight.append(self._pool.submit(self._finish, batch))

    def wait(self, at_most: int) -> None:
        """Wait until at most `at_most` batches are in flight. Raises the error of a batch that failed here."""
        while len(self._in_flight) > at_most:
            self._in_flight.popleft().result()

    def expected_end_s(self) -> float | None:
        """Estimate when the device finishes all its work, if each batch takes as long as the last one of its shape.

        Returns:
            seconds since the epoch; None if the device is idle, or if no batch of a shape was measured before.
        """
        with self._lock:
            if not self._on_device:
                return None
            end_s = self._end_s
            for batch in self._on_device:
                seconds = self._seconds.get(batch.shape)
                if seconds is None:
                    return None
                end_s = max(end_s, batch.begun_s) + seconds
            return end_s

    def finished(self) -> list[tuple[float, list[Assignment]]]:
        """The batches finished since the last call, each with its device seconds."""
        with self._lock:
            finished, self._finished = self._finished, []
        return finished

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="postprocess")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._pool is not None
        self._pool.shutdown(wait=True)
        self._pool = None

    def _finish(self, batch: StartedBatch) -> None:
        try:
            images = batch.decoded.images()
            times = self._clock.times(batch.marks)
        finally:
            with self._lock:
                self._on_device.popleft()
        count = len(batch.items)
        runs = by_run(batch.items)
        seconds = {}
        for stage, start_s, end_s in zip(STAGES, times[:-1], times[1:], strict=True):
            extra: dict[str, Any] = {} if runs is None else {"runs": runs}
            if stage == "denoise":
                extra["work"] = sum(map(_work, batch.items)) / self._context_size
            self._events.write(
                Event(span=stage, start_s=start_s, end_s=end_s, batch=batch.number, tasks=count, extra=extra)
            )
            seconds[stage] = (end_s - start_s) / count
        with self._lock:
            taken_s = times[-1] - max(times[0], self._end_s)
            self._finished.append((taken_s, [Assignment(item.order, item.task) for item in batch.items]))
            self._seconds[batch.shape] = taken_s
            self._end_s = times[-1]
        self._deliver(batch, images, seconds)


def _work(item: PreparedSample) -> float:
    """See `denoising_work`."""
    return denoising_work(item.order.config.model, item.task.point, item.placed.width, item.placed.height)
