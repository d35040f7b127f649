"""Runs batches through the model: condition, denoise, decode. Also warm-up, batch sizes and retries.

A batch that runs out of memory is halved. A batch that fails in another way is retried item by item, so that a bad
sample fails alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from fluxexp.errors import RankError
from fluxexp.models.base import Job, Model
from fluxexp.parallel.batching import BatchSizes, automatic_batch_size
from fluxexp.parallel.topology import Topology, free_memory_bytes, is_device_lost, is_out_of_memory
from fluxexp.telemetry import EventLog
from fluxexp.telemetry.events import Event, now_s
from fluxexp.worker.assignment import by_run
from fluxexp.worker.clock import Clock
from fluxexp.worker.conditioner import Conditioner
from fluxexp.worker.postprocess import Postprocessor, StartedBatch
from fluxexp.worker.prefetch import PreparedSample

T = TypeVar("T")


class BatchMaker:
    """Submits batches to the device and passes them to the postprocessor.

    Args:
        on_failure: receives each item that failed alone, with its error.
    """

    def __init__(
        self,
        model: Model,
        topology: Topology,
        events: EventLog,
        clock: Clock,
        conditioner: Conditioner,
        postprocessor: Postprocessor,
        on_failure: Callable[[PreparedSample, Exception], None],
    ) -> None:
        self._model = model
        self._topology = topology
        self._events = events
        self._clock = clock
        self._conditioner = conditioner
        self._postprocessor = postprocessor
        self._on_failure = on_failure
        self._batch_number = 0
        self._warm_shapes: set[object] = set()
        self.sizes = BatchSizes(self._choose_batch_size, _memory)
        """Batch size by `shape`."""

    def shape(self, item: PreparedSample) -> Hashable:
        """What all images of a batch must share: `PreparedSample.shape`, and the number of tokens of each text."""
        length = item.task.point.max_sequence_length
        texts = [text for text in (item.prompt, item.negative_prompt) if text is not None]
        return item.shape, tuple(self._model.text_tokens(text, length) for text in texts)

    def make(self, batch: Sequence[PreparedSample]) -> None:
        """Make the images of `batch`, in smaller batches if necessary.

        Raises:
            torch.AcceleratorError: the device is lost.
            RankError: a rank of the same replica is lost.
        """
        error = self._try(batch)
        if error is None:
            return
        if ends_rank(error):
            raise error
        shape = self.shape(batch[0])
        if is_out_of_memory(error):
            self._free_memory()
            if len(batch) == 1:  # caches that were just freed may have used the memory
                error = self._try(batch)
                if error is None:
                    return
                if ends_rank(error):
                    raise error
            if self.sizes.halve(shape, len(batch)):
                size = self.sizes[shape]
                for start in range(0, len(batch), size):
                    self.make(batch[start : start + size])
                return
        if len(batch) > 1:
            for item in batch:
                self.make([item])
        else:
            self._on_failure(batch[0], error)

    def _try(self, batch: Sequence[PreparedSample]) -> Exception | None:
        """Submit `batch`. Returns its error without traceback, because frames would keep device memory alive."""
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

        # Sample noise first. Launching the text encoders blocks the host while the device's queue is full, so that the
        # device would have to wait for noise that is sampled later.
        noise_samples = [
            self._model.sample_noise(item.task.seed, item.placed.height, item.placed.width) for item in batch
        ]
        conditionings = staged("condition", lambda: self._conditioner(batch))
        jobs = [
            Job(
                conditioning,
                item.task.point,
                item.task.seed,
                noise_sample=own_noise,
                run=_run(item),
                key=item.task.key,
            )
            for conditioning, own_noise, item in zip(conditionings, noise_samples, batch, strict=True)
        ]
        latents = staged("denoise", lambda: self._model.denoise(jobs))
        decoded = staged("decode", lambda: self._model.decode(latents))
        computed_steps = self._model.computed_steps(latents)
        cut_tokens = self._conditioner.cut_tokens(batch)  # last: the device has all its work already
        shape = (self.shape(batch[0]), len(batch))
        started = StartedBatch(number, batch, shape, begun_s, marks, decoded, computed_steps, cut_tokens)
        self._postprocessor.begin(started)

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

    def warm_up(self, batch: Sequence[PreparedSample]) -> None:
        """Load and compile kernels before the measurement: run one step of the first batch and discard it.

        It is repeated for a new shape only if the model compiles for shapes. Errors are left to `make`.
        """
        shape = (_memory(self.shape(batch[0])), len(batch))
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
                        key=item.task.key,
                    )
                    for conditioning, item in zip(conditionings, batch, strict=True)
                ]
                self._model.decode(self._model.denoise(jobs)).images()
        except Exception as error:
            if ends_rank(error):
                raise
            # Any other error occurs again when the batch is made, and is recorded with its tasks.

    def _warm_up_span(self, batch: Sequence[PreparedSample]) -> AbstractContextManager[None]:
        synchronize = self._topology.synchronize
        return self._events.span("denoise", tasks=0, warmup=True, synchronize=synchronize, runs=by_run(batch))

    def _choose_batch_size(self, shape: Any) -> int:
        (height, width, makes_second_pass, max_sequence_length, fixed), _ = _memory(shape)
        if fixed is not None:
            return int(fixed)
        rows = 2 if makes_second_pass else 1
        tokens = rows * self._model.tokens(height, width, max_sequence_length)
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


def ends_rank(error: Exception) -> bool:
    """Whether this rank cannot make more batches after `error`."""
    return is_device_lost(error) or isinstance(error, RankError)


def _run(item: PreparedSample) -> int | None:
    return None if item.order.is_alone else item.order.number


def _memory(shape: Any) -> tuple[Any, ...]:
    """The parts of `BatchMaker.shape` that tensor sizes depend on: not the steps or the scheduler."""
    (height, width, *_, makes_second_pass, max_sequence_length, fixed), text_tokens = shape
    return (height, width, makes_second_pass, max_sequence_length, fixed), text_tokens
