"""A model that several ranks run together: the leader's worker sees one model, and the other ranks follow the leader.

The leader takes tasks, conditions, decodes and writes. The followers only denoise. The model decides how the
ranks split a step.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.errors import RankError
from fluxexp.models.base import ContextParallelModel, CutTokens, Decoded, Job, ModelInput, Prompt
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.tensor_broadcast import packed, send, unpacked
from fluxexp.parallel.topology import is_device_lost
from fluxexp.records import LoraUse
from fluxexp.telemetry import Event, EventLog
from fluxexp.worker.attempt_logs import AttemptLogs
from fluxexp.worker.clock import Clock, clock_of


@dataclass(frozen=True, slots=True)
class _Announced:
    """A batch as the leader sends it to the followers."""

    begun: Any
    is_warmup: bool
    runs: Mapping[int, int] | None
    """Number of images of each run; None outside of a sweep."""
    tasks: Sequence[tuple[int, str]]
    """Number of the run and task key of each image."""


class LeadingModel:
    """The model of the leader's worker (`Model`): all ranks of the replica denoise."""

    def __init__(self, model: ContextParallelModel, replica: Replica, words: str) -> None:
        self._model = model
        self._replica = replica
        self.device = model.device
        self.applied_optimizations = [*model.applied_optimizations, words]
        self.skipped_optimizations = model.skipped_optimizations
        self.conditionings: OrderedDict[Hashable, Any] = model.conditionings
        self.compiles_shapes = model.compiles_shapes

    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Any]:
        """See `Model`. Runs only on this rank."""
        return self._model.condition(inputs, max_sequence_length)

    def sample_noise(self, seed: int, height: int, width: int) -> Any:
        """See `Model`."""
        return self._model.sample_noise(seed, height, width)

    def denoise(self, jobs: Sequence[Job]) -> Any:
        """See `Model`. Runs on all ranks of the replica.

        Raises:
            PeerError: the batch failed on another rank.
            RankError: another rank is lost, and the replica with it.
        """
        model, replica = self._model, self._replica
        begun = model.begin(jobs)
        text, tensors = packed(_Announced(begun, jobs[0].is_warmup, _by_run(jobs), _tasks(jobs)), model.device)
        replica.announce(text)
        with replica.together(model.drop_collectives):
            send(tensors, replica.collectives)
            return model.integrate(begun)

    def decode(self, latents: Any) -> Decoded:
        """See `Model`. Runs only on this rank."""
        return self._model.decode(latents)

    def free_memory(self) -> None:
        """See `Model`. Frees memory of this rank only."""
        self._model.free_memory()

    @property
    def streaming_bytes(self) -> int:
        """See `Model`."""
        return self._model.streaming_bytes

    def streams_text_encoders(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> bool:
        """See `Model`."""
        return self._model.streams_text_encoders(prompts, max_sequence_length)

    def encode_prompts(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> Any:
        """See `Model`."""
        return self._model.encode_prompts(prompts, max_sequence_length)

    def changes_text(self, lora: Sequence[LoraUse]) -> bool:
        """See `Model`."""
        return self._model.changes_text(lora)

    def text_tokens(self, prompt: Prompt, max_sequence_length: int | None) -> int:
        """See `Model`."""
        return self._model.text_tokens(prompt, max_sequence_length)

    def cut_tokens(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> list[CutTokens | None]:
        """See `Model`."""
        return self._model.cut_tokens(prompts, max_sequence_length)

    def computed_steps(self, latents: Any) -> list[int]:
        """See `Model`."""
        return self._model.computed_steps(latents)

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        """See `Model`."""
        return self._model.tokens(height, width, max_sequence_length)


def follow(model: ContextParallelModel, replica: Replica, events: EventLog, attempts: AttemptLogs) -> None:
    """Denoise the batches that the leader announces, until it announces the end. The leader handles failed batches.

    A follower writes to disk which tasks it works on, because it can die of one, and its leader lives.

    Raises:
        torch.AcceleratorError: the device is lost.
        RankError: another rank or the store is lost.
    """
    clock = clock_of(model.device)
    spans = _Spans(clock, events)
    while (text := replica.next(spans.write_if_past)) is not None:
        try:
            with replica.together(model.drop_collectives):
                announced: _Announced = unpacked(text, replica.collectives)
                attempts.begin(announced.tasks)
                start = clock.mark()
                model.integrate(announced.begun)
        except Exception as error:
            if not is_device_lost(error):
                attempts.close()
            if is_device_lost(error) or isinstance(error, RankError):
                raise
            spans.write_failed(error)
            _free_memory(model)
        else:
            for number, key in announced.tasks:
                attempts.end(number, key)
            spans.add(announced, [start, clock.mark()])
    spans.write()
    attempts.close()


def _free_memory(model: ContextParallelModel) -> None:
    model.free_memory()
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _by_run(jobs: Sequence[Job]) -> Mapping[int, int] | None:
    runs = [job.run for job in jobs if job.run is not None]
    return {run: runs.count(run) for run in dict.fromkeys(runs)} or None


def _tasks(jobs: Sequence[Job]) -> list[tuple[int, str]]:
    return [(job.run or 0, job.key) for job in jobs if job.key is not None]


class _Spans:
    """Writes a follower's event spans: work on a batch, and the wait before it. Waits for the device."""

    def __init__(self, clock: Clock, events: EventLog) -> None:
        self._clock = clock
        self._events = events
        self._pending: tuple[_Announced, Sequence[Any]] | None = None
        (self._end_s,) = clock.times([clock.mark()])
        self._number = 0

    def add(self, announced: _Announced, marks: Sequence[Any]) -> None:
        """Add a batch that the device works on between `marks`."""
        self.write()
        self._pending = announced, marks

    def write_if_past(self) -> None:
        """Write the pending spans, if the device has finished the batch."""
        if self._pending is not None and self._clock.is_past(self._pending[1][-1]):
            self.write()

    def write(self) -> None:
        """Write the pending spans. Waits for the device."""
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
        """Write the span of a batch that failed, on this rank or on another."""
        self.write()
        (end_s,) = self._clock.times([self._clock.mark()])
        words = f"{type(error).__name__}: {error}"
        self._events.write(Event(span="denoise", start_s=self._end_s, end_s=end_s, tasks=0, error=words))
        self._end_s = end_s
