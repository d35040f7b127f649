"""A model whose images several ranks make together: the leader's worker sees one model, the others follow it.

The leader takes tasks, conditions, decodes and writes; the followers take part in denoising. Knows nothing of how a
step is shared out: that is the model's.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.errors import RankError
from fluxexp.models.base import ContextParallelModel, Decoded, Job, ModelInput
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.tensor_broadcast import packed, send, unpacked
from fluxexp.parallel.topology import is_device_lost
from fluxexp.telemetry import Event, EventLog
from fluxexp.worker.clock import Clock, clock_of


@dataclass(frozen=True, slots=True)
class _Announced:
    """A batch as the followers get to know it."""

    begun: Any
    is_warmup: bool
    runs: Mapping[int, int] | None
    """Images of each run, in a sweep."""


class LeadingModel:
    """The leader's model as its worker sees it (`Model`): all ranks of the replica denoise."""

    def __init__(self, model: ContextParallelModel, replica: Replica, words: str) -> None:
        self._model = model
        self._replica = replica
        self.device = model.device
        self.applied_optimizations = [*model.applied_optimizations, words]
        self.skipped_optimizations = model.skipped_optimizations
        self.conditionings: OrderedDict[Hashable, Any] = model.conditionings
        self.compiles_shapes = model.compiles_shapes

    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Any]:
        """On this rank alone."""
        return self._model.condition(inputs, max_sequence_length)

    def sample_noise(self, seed: int, height: int, width: int) -> Any:
        """See `Model`."""
        return self._model.sample_noise(seed, height, width)

    def denoise(self, jobs: Sequence[Job]) -> Any:
        """On all ranks.

        Raises:
            PeerError: it failed on another rank.
            RankError: another rank is lost, and the replica with it.
        """
        model, replica = self._model, self._replica
        begun = model.begin(jobs)
        text, tensors = packed(_Announced(begun, jobs[0].is_warmup, _by_run(jobs)), model.device)
        replica.announce(text)
        with replica.together(model.drop_collectives):
            send(tensors, replica.collectives)
            return model.integrate(begun)

    def decode(self, latents: Any) -> Decoded:
        """On this rank alone."""
        return self._model.decode(latents)

    def free_memory(self) -> None:
        """Of this rank."""
        self._model.free_memory()

    @property
    def visiting_bytes(self) -> int:
        """See `Model`."""
        return self._model.visiting_bytes

    def encoders_visit(self, prompts: Sequence[str], max_sequence_length: int | None) -> bool:
        """See `Model`."""
        return self._model.encoders_visit(prompts, max_sequence_length)

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None) -> Any:
        """See `Model`."""
        return self._model.encode_prompts(prompts, max_sequence_length)

    def computed_steps(self, latents: Any) -> list[int]:
        """See `Model`."""
        return self._model.computed_steps(latents)

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        """See `Model`."""
        return self._model.tokens(height, width, max_sequence_length)


def follow(model: ContextParallelModel, replica: Replica, events: EventLog) -> None:
    """Take part in what the leader announces, until it says that there is no more. Failed batches are its business.

    Raises:
        torch.AcceleratorError: the device is lost.
        RankError: another rank is lost, or the store is.
    """
    clock = clock_of(model.device)
    spans = _Spans(clock, events)
    while (text := replica.next(spans.write_if_past)) is not None:
        try:
            with replica.together(model.drop_collectives):
                announced: _Announced = unpacked(text, replica.collectives)
                start = clock.mark()
                model.integrate(announced.begun)
        except Exception as error:
            if is_device_lost(error) or isinstance(error, RankError):
                raise
            spans.write_failed(error)
            _free_memory(model)
        else:
            spans.add(announced, [start, clock.mark()])
    spans.write()


def _free_memory(model: ContextParallelModel) -> None:
    model.free_memory()
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _by_run(jobs: Sequence[Job]) -> Mapping[int, int] | None:
    runs = [job.run for job in jobs if job.run is not None]
    return {run: runs.count(run) for run in dict.fromkeys(runs)} or None


class _Spans:
    """A follower's time: at work on a batch, or waiting for the next. Written once the device is through with it."""

    def __init__(self, clock: Clock, events: EventLog) -> None:
        self._clock = clock
        self._events = events
        self._pending: tuple[_Announced, Sequence[Any]] | None = None
        (self._end_s,) = clock.times([clock.mark()])
        self._number = 0

    def add(self, announced: _Announced, marks: Sequence[Any]) -> None:
        """A batch that was given to the device between `marks`."""
        self.write()
        self._pending = announced, marks

    def write_if_past(self) -> None:
        """Write what is left to be written, if that needs no waiting."""
        if self._pending is not None and self._clock.is_past(self._pending[1][-1]):
            self.write()

    def write(self) -> None:
        """Write what is left to be written."""
        if self._pending is None:
            return
        (announced, marks), self._pending = self._pending, None
        start_s, end_s = self._clock.times(marks)
        common: dict[str, Any] = {"batch": self._number, "tasks": 0, "warmup": announced.is_warmup}
        runs = {} if announced.runs is None else {"runs": announced.runs}
        waited = Event(span="wait", start_s=self._end_s, end_s=start_s, extra={**runs, "reason": "leader"}, **common)
        self._events.write(waited)
        self._events.write(Event(span="denoise", start_s=start_s, end_s=end_s, extra=runs, **common))
        self._end_s = end_s
        self._number += 1

    def write_failed(self, error: Exception) -> None:
        """A batch that went wrong, here or elsewhere."""
        self.write()
        (end_s,) = self._clock.times([self._clock.mark()])
        words = f"{type(error).__name__}: {error}"
        self._events.write(Event(span="denoise", start_s=self._end_s, end_s=end_s, tasks=0, error=words))
        self._end_s = end_s
