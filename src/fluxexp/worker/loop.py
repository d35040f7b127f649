"""The loop of one rank: it makes batches of tasks, runs them through the model, and writes one record for each task.

Tasks of several runs share the model and, if their shapes are equal, also batches.

The worker submits the next batch shortly before the GPU finishes the last one, whose images another thread handles
(`postprocess.py`). So the GPU does not wait for the host, and tasks are still taken late, for other ranks to steal.

A batch that runs out of memory is halved. A batch that fails in another way is retried item by item, so that a bad
sample fails alone. If a directory cannot be written, the work on its run ends. The rank ends only if its device or a
rank of the same replica is lost.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from PIL.Image import Image

from fluxexp.errors import FluxexpError, RankError, SampleError
from fluxexp.models.base import Job, Model
from fluxexp.parallel.batching import BatchSizes, automatic_batch_size, is_batch_full, next_batch
from fluxexp.parallel.topology import Topology, free_memory_bytes, is_device_lost, is_out_of_memory
from fluxexp.records import Record
from fluxexp.telemetry import EventLog
from fluxexp.telemetry.events import Event, now_s
from fluxexp.worker.assignment import Queue, by_run
from fluxexp.worker.clock import clock_of
from fluxexp.worker.conditioner import Conditioner
from fluxexp.worker.postprocess import Postprocessor, StartedBatch
from fluxexp.worker.prefetch import Prefetcher, PreparedSample, UnreadableSample
from fluxexp.worker.writer import ResultWriter

T = TypeVar("T")

_LOOK_AHEAD = 32
"""Samples that may wait, read and placed, until a batch is full."""
_LEAD_S = 0.05
"""The next batch is started at least this long before the last one should end; twice the time of a start, if longer."""
_LOOK_S = 0.05
_NOT_FINITE = SampleError("the model's output is not finite (NaN or infinity)")


class Worker:
    """Makes the images of one rank's tasks.

    Args:
        context_size: ranks that make each image together, for the records. The model runs the other ranks.
    """

    def __init__(
        self,
        model: Model,
        topology: Topology,
        writer: ResultWriter,
        events: EventLog,
        *,
        context_size: int = 1,
    ) -> None:
        self._context_size = context_size
        self._model = model
        self._topology = topology
        self._writer = writer
        self._events = events
        self._sizes = BatchSizes(self._choose_batch_size, _memory)
        self._conditioner = Conditioner(model)
        self._batch_number = 0
        self._warm_shapes: set[object] = set()
        self._wanted = 1
        self._clock = clock_of(topology.device)
        self._postprocessor = Postprocessor(self._clock, events, self._deliver)
        self._beginning_s = 0.0

    def run(self, queue: Queue) -> None:
        """Make every task of `queue`, in order as far as shapes allow it.

        Raises:
            torch.AcceleratorError: the device is lost.
            RankError: a rank of the same replica is lost.
        """
        waiting: list[PreparedSample] = []
        with Prefetcher(2 * _LOOK_AHEAD) as prefetcher, self._postprocessor:
            while True:
                self._wait_for_turn()
                self._report(queue)
                started = time.perf_counter()
                if not self._fill(waiting, queue, prefetcher) and not waiting:
                    break
                chosen = next_batch(waiting, lambda item: item.shape, self._sizes)
                batch = [waiting[index] for index in chosen]
                for index in reversed(chosen):
                    del waiting[index]
                self._encode_ahead(batch, waiting, queue, prefetcher)
                self._warm_up(batch)
                self._make(batch)
                self._beginning_s = time.perf_counter() - started
            self._postprocessor.wait(at_most=0)
            self._report(queue)

    def _wait_for_turn(self) -> None:
        """Wait until the device will soon finish its work."""
        self._postprocessor.wait(at_most=1)
        lead_s = max(_LEAD_S, 2 * self._beginning_s)
        while self._clock.is_ahead and (expected_s := self._postprocessor.expected_end_s()) is not None:
            left_s = expected_s - now_s() - lead_s
            if left_s <= 0:
                return
            time.sleep(
                min(left_s, _LOOK_S)
            )  # poll: the batch may end sooner than the last one, for example with a step cache

    def _report(self, queue: Queue) -> None:
        for seconds, made in self._postprocessor.finished():
            queue.report(seconds, made)

    def _fill(self, waiting: list[PreparedSample], queue: Queue, prefetcher: Prefetcher) -> bool:
        """Take tasks until a batch is full or `_LOOK_AHEAD` samples wait. Other ranks cannot steal taken tasks.

        Returns:
            whether the queue may have more tasks.
        """
        while len(waiting) < _LOOK_AHEAD and not is_batch_full(waiting, lambda item: item.shape, self._sizes):
            prefetcher.read_ahead(queue.upcoming(_LOOK_AHEAD))
            taken = queue.take(self._number_wanted(waiting, queue, prefetcher))
            if not taken:
                return False
            if broken := self._writer.errors:
                if len(broken) == queue.num_runs:
                    waiting.clear()
                    return False
                waiting[:] = [item for item in waiting if item.order.number not in broken]
                taken = [assignment for assignment in taken if assignment.order.number not in broken]
            prefetcher.read_ahead(taken)
            with self._events.span("wait", reason="read"):
                items = [prefetcher.get(assignment) for assignment in taken]
            for item in items:
                if isinstance(item, UnreadableSample):
                    self._writer.fail(item.order, self._record(item, error=item.error))
                else:
                    waiting.append(item)
        return True

    def _number_wanted(self, waiting: Sequence[PreparedSample], queue: Queue, prefetcher: Prefetcher) -> int:
        """Number of tasks to take: what completes a batch of the next task's shape, or of the last known shape."""
        for assignment in queue.upcoming(1):
            with self._events.span("wait", reason="read"):
                following = prefetcher.get(assignment)
            if isinstance(following, PreparedSample):
                self._wanted = self._sizes[following.shape]
                return self._wanted - sum(item.shape == following.shape for item in waiting)
        return self._wanted

    def _encode_ahead(
        self, batch: Sequence[PreparedSample], waiting: Sequence[PreparedSample], queue: Queue, prefetcher: Prefetcher
    ) -> None:
        """If text encoders must be moved to the device for this batch, encode the prompts of the next tasks, too."""
        if not self._conditioner.streams_text_encoders(batch):
            return
        upcoming = queue.upcoming(_LOOK_AHEAD)
        prefetcher.read_ahead(upcoming)
        with self._events.span("wait", reason="read"):
            following = [item for item in map(prefetcher.get, upcoming) if isinstance(item, PreparedSample)]
        try:
            self._conditioner.encode_ahead((*batch, *waiting, *following), like=batch[0])
        except Exception as error:
            if _is_final(error):
                raise
            # The batch itself meets any other error next, and records it with its tasks.

    def _make(self, batch: Sequence[PreparedSample]) -> None:
        error = self._try(batch)
        if error is None:
            return
        if _is_final(error):
            raise error
        shape = batch[0].shape
        if is_out_of_memory(error):
            self._free_memory()
            if len(batch) == 1:  # caches that were just freed may have used the memory
                error = self._try(batch)
                if error is None:
                    return
                if _is_final(error):
                    raise error
            if self._sizes.halve(shape, len(batch)):
                size = self._sizes[shape]
                for start in range(0, len(batch), size):
                    self._make(batch[start : start + size])
                return
        if len(batch) > 1:
            for item in batch:
                self._make([item])
        else:
            self._writer.fail(batch[0].order, self._record(batch[0], error=error))

    def _try(self, batch: Sequence[PreparedSample]) -> Exception | None:
        """Make `batch`. Returns its error without traceback, because frames would keep device memory alive."""
        try:
            self._generate(batch)
        except Exception as error:
            return error.with_traceback(None)
        return None

    def _generate(self, batch: Sequence[PreparedSample]) -> None:
        """Submit all stages of a batch to the device."""
        number, self._batch_number = self._batch_number, self._batch_number + 1
        begun_s = now_s()
        marks = [self._clock.mark()]

        def staged(stage: str, work: Callable[[], T]) -> T:
            start_s = now_s()
            try:
                result = work()
            except BaseException as error:
                self._write_failed(stage, start_s, number, batch, error)
                raise
            marks.append(self._clock.mark())
            return result

        # Sample noise first: text encoders fill the device's queue, and the host would sample noise while it waits.
        noise_samples = [
            self._model.sample_noise(item.task.seed, item.placed.height, item.placed.width) for item in batch
        ]
        conditionings = staged("condition", lambda: self._conditioner(batch))
        jobs = [
            Job(conditioning, item.task.point, item.task.seed, noise_sample=own_noise, run=_run(item))
            for conditioning, own_noise, item in zip(conditionings, noise_samples, batch, strict=True)
        ]
        latents = staged("denoise", lambda: self._model.denoise(jobs))
        decoded = staged("decode", lambda: self._model.decode(latents))
        computed_steps = self._model.computed_steps(latents)
        shape = (batch[0].shape, len(batch))
        self._postprocessor.begin(StartedBatch(number, batch, shape, begun_s, marks, decoded, computed_steps))

    def _write_failed(
        self, stage: str, start_s: float, number: int, batch: Sequence[PreparedSample], error: BaseException
    ) -> None:
        runs = by_run(batch)
        self._events.write(
            Event(
                span=stage,
                start_s=start_s,
                end_s=now_s(),
                batch=number,
                tasks=len(batch),
                error=f"{type(error).__name__}: {error}",
                extra={} if runs is None else {"runs": runs},
            )
        )

    def _deliver(self, batch: StartedBatch, images: Sequence[Image | None], seconds: Mapping[str, float]) -> None:
        """Pass images to the writer. Runs on the postprocessor's thread."""
        for item, image, computed in zip(batch.items, images, batch.computed_steps, strict=True):
            error = None if image is not None else _NOT_FINITE
            size = len(batch.items)
            record = self._record(item, error=error, seconds=seconds, batch_size=size, computed_steps=computed)
            if image is None:
                self._writer.fail(item.order, record)
            else:
                self._writer.write(image, item, record)

    def _warm_up(self, batch: Sequence[PreparedSample]) -> None:
        """Load and compile kernels before the measurement: run one step of the first batch and discard it.

        Repeated for each new shape only if the model compiles for shapes. The batch itself reports errors.
        """
        shape = (_memory(batch[0].shape), len(batch))
        if shape in self._warm_shapes or (self._warm_shapes and not self._model.compiles_shapes):
            return
        self._warm_shapes.add(shape)
        try:
            with self._warm_up_span(batch):
                # Not cached, because the measured batch must include the time of its conditioning.
                conditionings = self._conditioner.condition_again(batch)
                jobs = [
                    Job(
                        conditioning,
                        replace(item.task.point, steps=1, strength=1.0),
                        item.task.seed,
                        is_warmup=True,
                        run=_run(item),
                    )
                    for conditioning, item in zip(conditionings, batch, strict=True)
                ]
                self._model.decode(self._model.denoise(jobs)).images()
        except Exception as error:
            if _is_final(error):
                raise
            # The batch itself meets any other error next, and records it with its tasks.

    def _warm_up_span(self, batch: Sequence[PreparedSample]) -> AbstractContextManager[None]:
        synchronize = self._topology.synchronize
        return self._events.span("denoise", tasks=0, warmup=True, synchronize=synchronize, runs=by_run(batch))

    def _choose_batch_size(self, shape: Any) -> int:
        height, width, max_sequence_length, fixed = _memory(shape)
        if fixed is not None:
            return int(fixed)
        tokens = self._model.tokens(height, width, max_sequence_length)
        free_bytes = free_memory_bytes(self._topology.device)
        if free_bytes is not None:
            free_bytes = max(0, free_bytes - self._model.streaming_bytes)
        return automatic_batch_size(tokens, free_bytes)

    def _free_memory(self) -> None:
        self._postprocessor.wait(at_most=0)
        self._model.free_memory()
        gc.collect()
        if self._topology.device.type == "cuda":
            torch.cuda.empty_cache()

    def _record(
        self,
        item: PreparedSample | UnreadableSample,
        *,
        error: object = None,
        seconds: Mapping[str, float] | None = None,
        batch_size: int | None = None,
        computed_steps: int | None = None,
    ) -> Record:
        task = item.task
        prepared = item if isinstance(item, PreparedSample) else None
        return Record(
            key=task.key,
            sample_key=task.sample_key,
            status="ok" if error is None else "failed",
            file=None,
            error=None if error is None else _describe(error),
            prompt=prepared.sample.prompt if prepared else None,
            seed=task.seed,
            variant=task.variant,
            steps=task.point.steps,
            guidance=task.point.guidance,
            height=prepared.placed.height if prepared else None,
            width=prepared.placed.width if prepared else None,
            covered=round(prepared.placed.frame.covered, 4) if prepared else None,
            rank=self._topology.rank,
            device=self._topology.device_name,
            batch_size=batch_size,
            seconds=dict(seconds or {}),
            attempt=item.order.attempts.get(task.key, 0) + 1,
            computed_steps=computed_steps,
            context_size=self._context_size,
        )


def _is_final(error: Exception) -> bool:
    """Whether this rank cannot make more batches."""
    return is_device_lost(error) or isinstance(error, RankError)


def _run(item: PreparedSample) -> int | None:
    return None if item.order.is_alone else item.order.number


def _memory(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """The parts of `PreparedSample.shape` that tensor sizes depend on: not the steps or the scheduler."""
    height, width, *_, max_sequence_length, fixed = shape
    return height, width, max_sequence_length, fixed


def _describe(error: object) -> str:
    """The text of an error in the manifest. Unexpected errors include their type."""
    if isinstance(error, Exception) and not isinstance(error, FluxexpError):
        return f"{type(error).__name__}: {error}"
    return str(error)
