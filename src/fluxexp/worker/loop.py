"""The loop of one rank: it takes tasks, forms batches, makes their images, and writes one record for each task.

Tasks of several runs share the model and, if their shapes are equal, also batches.

The worker submits the next batch shortly before the GPU finishes the last one, whose images another thread handles
(`postprocess.py`). So the GPU does not wait for the host. The rank takes tasks late, so that other ranks can still
steal them.

Before it reads or makes a sample, the worker writes to disk that it begins the task (`AttemptLogs`). `run_alone`
makes the tasks that a process may have died of.

`batch_maker.py` handles failed batches. If a directory cannot be written, the work on its run ends. The rank ends only
if its device or a rank of the same replica is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL.Image import Image

from fluxexp.errors import SampleError
from fluxexp.models.base import Model
from fluxexp.parallel.batching import is_batch_full, next_batch
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.telemetry import EventLog, say
from fluxexp.telemetry.events import now_s
from fluxexp.worker.assignment import Assignment, Queue, WorkOrder
from fluxexp.worker.batch_maker import BatchMaker, ends_rank
from fluxexp.worker.clock import clock_of
from fluxexp.worker.conditioner import Conditioner
from fluxexp.worker.postprocess import Postprocessor, StartedBatch
from fluxexp.worker.prefetch import Prefetcher, PreparedSample, UnreadableSample
from fluxexp.worker.sample_bytes import total_bytes
from fluxexp.worker.task_record import make_record
from fluxexp.worker.writer import ResultWriter

_LOOK_AHEAD = 32
"""Samples that may wait, read and placed, until a batch is full."""
_WAITING_BYTES = 512 << 20
"""Memory of these samples. If they need more, the next batch is made of them, even if it is not full."""
_LEAD_S = 0.05
"""The next batch is submitted at least this long before the last one should end, or twice the time that submitting a
batch takes, if that is longer."""
_POLL_S = 0.05
_NOT_FINITE = SampleError("the model's output is not finite (NaN or infinity)")


class Worker:
    """Makes the images of one rank's tasks.

    Args:
        context_size: number of ranks that make each image together, for the records. `model` involves the other ranks.
        stops: whether the session stops, so that the worker begins no more batches.
    """

    def __init__(
        self,
        model: Model,
        topology: Topology,
        writer: ResultWriter,
        events: EventLog,
        *,
        context_size: int = 1,
        stops: Callable[[], bool] = lambda: False,
    ) -> None:
        self._context_size = context_size
        self._stops = stops
        self._topology = topology
        self._writer = writer
        self._events = events
        self._conditioner = Conditioner(model)
        self._clock = clock_of(topology.device)
        self._postprocessor = Postprocessor(self._clock, events, self._deliver, context_size)
        self._maker = BatchMaker(
            model, topology, events, self._clock, self._conditioner, self._postprocessor, self._fail
        )
        self._sizes = self._maker.sizes
        self._wanted = 1
        self._refused: set[int] = set()
        """Runs that cannot be written, which was said."""
        self._submit_s = 0.0
        """Time that the last batch took on the host, from taking its tasks to the end of its submission."""

    def run(self, queue: Queue) -> None:
        """Make every task of `queue`. A batch has one shape, so the order can differ from that of the queue.

        If the session stops, the batches in flight are finished, and nothing more is begun.

        Raises:
            torch.AcceleratorError: the device is lost.
            RankError: a rank of the same replica is lost.
        """
        waiting: list[PreparedSample] = []
        with Prefetcher(2 * _LOOK_AHEAD, on_begin=self._begin) as prefetcher, self._postprocessor:
            while True:
                self._wait_for_turn()
                self._report(queue)
                if self._stops():
                    break
                started = time.perf_counter()
                if not self._fill(waiting, queue, prefetcher) and not waiting:
                    break
                chosen = next_batch(waiting, self._maker.shape, self._sizes)
                batch = [waiting[index] for index in chosen]
                for index in reversed(chosen):
                    del waiting[index]
                self._encode_ahead(batch, waiting, queue, prefetcher)
                self._make(batch)
                self._submit_s = time.perf_counter() - started
            self._postprocessor.wait(at_most=0)
            self._report(queue)

    def run_alone(self, assignments: Iterable[Assignment]) -> None:
        """Make tasks one at a time: each is read and made while the process works on nothing else.

        So if the process dies, there is one task that can be the reason.

        Raises:
            torch.AcceleratorError, RankError: see `run`.
        """
        with Prefetcher(1, on_begin=self._begin) as prefetcher, self._postprocessor:
            for assignment in assignments:
                if self._stops() or assignment.order.number in self._writer.errors:
                    continue
                item = prefetcher.get(assignment)
                if isinstance(item, UnreadableSample):
                    self._fail(item, item.error)
                else:
                    self._make([item])
                self._postprocessor.wait(at_most=0)
                self._writer.drain()
            self._postprocessor.finished()  # the pace of single images says nothing about batches

    def _make(self, batch: Sequence[PreparedSample]) -> None:
        self._begin(batch)
        self._maker.warm_up(batch)
        self._maker.make(batch)

    def _begin(self, items: Iterable[Assignment | PreparedSample]) -> None:
        self._writer.attempts.begin((item.order.number, item.task.key) for item in items)

    def _wait_for_turn(self) -> None:
        """Wait until the device will soon finish its work."""
        self._postprocessor.wait(at_most=1)
        lead_s = max(_LEAD_S, 2 * self._submit_s)
        while self._clock.is_ahead and (expected_s := self._postprocessor.expected_end_s()) is not None:
            left_s = expected_s - now_s() - lead_s
            if left_s <= 0:
                return
            # Poll, because the batch can end earlier than expected, for example with a step cache.
            time.sleep(min(left_s, _POLL_S))

    def _report(self, queue: Queue) -> None:
        for seconds, made in self._postprocessor.finished():
            queue.report(seconds, made)

    def _fill(self, waiting: list[PreparedSample], queue: Queue, prefetcher: Prefetcher) -> bool:
        """Take tasks until a batch is full, or enough samples wait (`_LOOK_AHEAD`, `_WAITING_BYTES`).

        Other ranks cannot steal taken tasks.

        Returns:
            whether the queue may have more tasks.
        """
        while (
            len(waiting) < _LOOK_AHEAD
            and not is_batch_full(waiting, self._maker.shape, self._sizes)
            and total_bytes((item.sample, item.placed) for item in waiting) < _WAITING_BYTES
        ):
            upcoming = queue.upcoming(_LOOK_AHEAD)
            if not self._can_write(queue, [assignment.order for assignment in upcoming] or queue.orders[:1]):
                waiting.clear()
                return False
            prefetcher.read_ahead(upcoming)
            taken = queue.take(self._number_wanted(waiting, queue, prefetcher))
            if not taken:
                return False
            if not self._can_write(queue, [assignment.order for assignment in taken]):  # stolen: not in `upcoming`
                waiting.clear()
                return False
            broken = self._writer.errors
            waiting[:] = [item for item in waiting if item.order.number not in broken]
            taken = [assignment for assignment in taken if assignment.order.number not in broken]
            prefetcher.read_ahead(taken)
            with self._events.span("wait", reason="read"):
                items = [prefetcher.get(assignment) for assignment in taken]
            for item in items:
                if isinstance(item, UnreadableSample):
                    self._fail(item, item.error)
                else:
                    waiting.append(item)
        return True

    def _can_write(self, queue: Queue, orders: Iterable[WorkOrder]) -> bool:
        """Probe the stores of the runs that come next. A rank must not take tasks whose results it cannot write.

        Returns:
            whether some run of the queue can be written.
        """
        for order in orders:
            if not self._writer.can_write(order) and order.number not in self._refused:
                self._refused.add(order.number)
                error = self._writer.errors[order.number]
                say(f"rank {self._topology.rank} makes no images of this run: {error}", urgent=True)
        return len(self._writer.errors) < len(queue.orders)

    def _number_wanted(self, waiting: Sequence[PreparedSample], queue: Queue, prefetcher: Prefetcher) -> int:
        """Number of tasks to take: as many as complete a batch of the next task's shape, or of the last known shape."""
        for assignment in queue.upcoming(1):
            with self._events.span("wait", reason="read"):
                following = prefetcher.get(assignment)
            if isinstance(following, PreparedSample):
                shape = self._maker.shape(following)
                self._wanted = self._sizes[shape]
                return self._wanted - sum(self._maker.shape(item) == shape for item in waiting)
        return self._wanted

    def _encode_ahead(
        self, batch: Sequence[PreparedSample], waiting: Sequence[PreparedSample], queue: Queue, prefetcher: Prefetcher
    ) -> None:
        """If text encoders must be moved to the device for this batch, encode the prompts of the next tasks, too."""
        if not self._conditioner.streams_text_encoders(batch):
            return
        upcoming = queue.upcoming(_LOOK_AHEAD)
        upcoming = upcoming[: prefetcher.read_ahead(upcoming)]
        with self._events.span("wait", reason="read"):
            following = [item for item in map(prefetcher.get, upcoming) if isinstance(item, PreparedSample)]
        try:
            self._conditioner.encode_ahead((*batch, *waiting, *following), like=batch[0])
        except Exception as error:
            if ends_rank(error):
                raise
            # Any other error occurs again when the batch is made, and is recorded with its tasks.

    def _deliver(self, batch: StartedBatch, images: Sequence[Image | None], seconds: Mapping[str, float]) -> None:
        """Pass images to the writer. Runs on the postprocessor's thread."""
        size = len(batch.items)
        per_image = zip(batch.items, images, batch.computed_steps, batch.cut_tokens, strict=True)
        for item, image, computed, cut in per_image:
            error = None if image is not None else _NOT_FINITE
            record = self._record(
                item,
                error=error,
                seconds=seconds,
                batch_size=size,
                computed_steps=computed,
                cut_tokens=cut,
                notes=[] if image is None else _oddities(image),
            )
            if image is None:
                self._writer.fail(item.order, record)
            else:
                self._writer.write(image, item, record)

    def _fail(self, item: PreparedSample | UnreadableSample, error: Exception) -> None:
        self._writer.fail(item.order, self._record(item, error=error))

    def _record(self, item: PreparedSample | UnreadableSample, **result: Any) -> Record:
        return make_record(item, self._topology, context_size=self._context_size, **result)


def _oddities(image: Image) -> list[str]:
    """What looks like a failure of the model, and is not always one: a picture of the sky may have only one color."""
    extrema: Any = image.getextrema()  # (lowest, highest) of each channel
    if any(low != high for low, high in extrema):
        return []
    return [f"the model painted only one color, RGB {tuple(low for low, _ in extrema)}"]
