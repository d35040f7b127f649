"""fluxexp as an engine: its real worker and writer, with a queue of tasks in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from fluxexp.address import Address
from fluxexp.cli.compose import to_run_config
from fluxexp.cli.location import config_directory
from fluxexp.config import RunConfig
from fluxexp.config.optimization_kinds import settled
from fluxexp.models.loading.model_loader import load_model
from fluxexp.parallel.topology import Topology, join
from fluxexp.plan import Plan
from fluxexp.records import Record, Sample
from fluxexp.storage.attempts import WorkerProcess
from fluxexp.storage.result_files import events_stream
from fluxexp.telemetry import Event, EventLog
from fluxexp.worker import Assignment, PreparedSample, ResultWriter, Worker, WorkOrder
from imagespeed.cases import Case, Samples
from imagespeed.engine import StretchResult
from imagespeed.models import BenchmarkModel
from imagespeed.step_clock import StepClock


class Framework:
    """A loaded model of fluxexp, and a worker for each case.

    Args:
        optimization: a preset, with changes of its keys: `lossless,cuda_graph=false`.
        model: what to load.
        is_full_size: whether to use the full-size model.
        pixels: number of pixels of the largest image.
        has_second_pass: whether images are made with a negative prompt.
    """

    def __init__(
        self, optimization: str, model: BenchmarkModel, is_full_size: bool, pixels: int, has_second_pass: bool
    ) -> None:
        preset, *changes = optimization.split(",")
        self._overrides = [f"optimization={preset}", "tracking=disabled", "metrics=none", "report=off"]
        self._overrides += ["optimization.text_cache=false"]  # so that every stretch encodes its prompts
        # A step cache is a config group: lossless,step_cache=first_block,step_cache.threshold=0.08
        self._overrides += [f"optimization{'/' if c.startswith('step_cache=') else '.'}{c}" for c in changes]
        self._overrides += model.overrides(is_full_size, has_second_pass)
        config = composed(self._overrides)
        self._topology = join(config.parallelism)
        self.device: torch.device = self._topology.device
        self._model = load_model(config, self.device, rank=0, pixels=pixels)
        self._clock = StepClock(self.pipeline.transformer, self.device)
        self._runs: dict[str, _Run] = {}

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline that contains the model."""
        return self._model.pipeline  # type: ignore[attr-defined]

    @property
    def notes(self) -> list[str]:
        """Applied optimizations, then skipped ones with the reason."""
        skipped = [f"skipped {name}: {reason}" for name, reason in self._model.skipped_optimizations.items()]
        return [*self._model.applied_optimizations, *skipped]

    def make(self, samples: Sequence[Sample], number: int, case: Case, batch: int, directory: Path) -> StretchResult:
        """Make images like a run: with prefetching, batch by batch, and with files written in the background."""
        if case.label not in self._runs:
            overrides = [
                *self._overrides,
                f"sampling.steps={case.steps}",
                f"sampling.batch_size={'null' if case.batch is None else case.batch}",
                f"output.dir={directory}",
            ]
            self._runs[case.label] = _Run(
                composed(overrides), samples, directory, self._model, self._topology, self._clock, case.steps_run
            )
        return self._runs[case.label].make(number)


class _Run:
    """The run directory, writer and worker of one case. All stretches of the case use the same ones."""

    def __init__(
        self,
        config: RunConfig,
        samples: Sequence[Sample],
        directory: Path,
        model: Any,
        topology: Topology,
        clock: StepClock,
        steps_run: int,
    ) -> None:
        self._clock, self._steps_run = clock, steps_run
        self._plan = Plan.of(config, Samples(samples), Address.of(directory))
        self._plan.directory.local_directory().mkdir(parents=True)
        self._plan.directory.writer.prepare(self._plan.fingerprint_payload, overwrite=True)
        append = partial(self._plan.directory.store.append_record, events_stream(0, "benchmark"), durable=False)
        events = EventLog(append, listeners=[self._on_event])
        self._order = WorkOrder(
            number=0,
            config=config,
            dataset=self._plan.dataset,
            directory=self._plan.directory,
            attempts={},
            is_alone=True,
        )
        process = WorkerProcess.current("benchmark", 0)
        self._writer = ResultWriter({}, events, self._on_result, [self._order], process)
        self._worker = Worker(model, topology, self._writer, events)
        self._done = threading.Semaphore(0)
        self._failed: list[Record] = []
        self._made = StretchResult([])

    def make(self, number: int) -> StretchResult:
        """Make the images of the first `number` tasks, and wait until they are on disk."""
        self._made = StretchResult([])
        self._worker.run(MemoryQueue([Assignment(self._order, self._plan.task(index)) for index in range(number)]))
        for _ in range(number):
            self._done.acquire()
        if self._failed or self._writer.errors:
            raise RuntimeError(self._failed[0].error if self._failed else str(self._writer.errors[0]))
        return self._made

    def _on_event(self, event: Event) -> None:
        if event.span == "decode" and event.error is None:
            self._made.ends_s.append(event.end_s)
        if event.span != "denoise":
            return
        step_s = self._clock.take(self._steps_run)  # also after a warm-up, which drops its marks
        if event.tasks and not event.warmup and event.error is None:
            self._made.batches.append(event.tasks)
            self._made.step_s += step_s or [event.seconds / self._steps_run]

    def _on_result(self, _order: WorkOrder, record: Record, _item: PreparedSample | None) -> None:
        if record.status != "ok":
            self._failed.append(record)
        self._done.release()


class MemoryQueue:
    """A queue of tasks in memory, with the interface that a worker needs."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._waiting = deque(assignments)
        self.orders = [assignment.order for assignment in assignments[:1]]

    def upcoming(self, number: int) -> list[Assignment]:
        """The next tasks, at most `number`, which stay in the queue."""
        return [self._waiting[index] for index in range(min(number, len(self._waiting)))]

    def take(self, wanted: int) -> list[Assignment]:
        """Remove and return the next tasks: at most `wanted`, and at least one if there are any."""
        return [self._waiting.popleft() for _ in range(min(max(wanted, 1), len(self._waiting)))]

    def report(self, seconds: float, made: Sequence[Assignment]) -> None:
        """Does nothing, because there are no other ranks."""


def composed(overrides: Sequence[str]) -> RunConfig:
    """The config of these overrides, with the automatic settings that rank 0 would choose on this machine."""
    with initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        config = to_run_config(compose("config", overrides=list(overrides)))
    return settled(config, has_gpu=torch.cuda.is_available())
