"""Writes results for the worker: restore the sample's size, write the image, append the record, in this order.

One thread does all of it. So encoding overlaps with the next batch, and each manifest stream has one writer. The queue
is bounded: slow storage slows the worker down and does not fill the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from fluxexp.data import restore
from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.storage.attempts import WorkerProcess
from fluxexp.storage.image_files import encode_image
from fluxexp.storage.result_files import image_key
from fluxexp.storage.result_streams import ResultStream
from fluxexp.telemetry import EventLog
from fluxexp.worker.assignment import WorkOrder, by_run
from fluxexp.worker.attempt_logs import AttemptLogs
from fluxexp.worker.generation_parameters import generation_parameters
from fluxexp.worker.prefetch import PreparedSample
from fluxexp.worker.sample_bytes import ByteBudget, sample_bytes
from fluxexp.worker.task_record import describe

_QUEUE = 32
"""Most results in the queue."""
_QUEUE_BYTES = 512 << 20
"""Memory of the results in the queue, with the samples that they are pasted into. So fewer large photos wait."""


class ResultWriter:
    """Writes images and records, each into the store of its run.

    While a store has a passing trouble, the writer waits (`RetryingStore`), the queue fills, and the worker waits, too.
    A store that still cannot be written ends the work on its run, so that results are not lost one by one. The writer
    drops later results of this run, keeps the reason in `errors`, and continues with the other runs. Dropped tasks have
    no record, so they are made later.
    """

    def __init__(
        self,
        provenance: Mapping[str, Any],
        events: EventLog,
        on_record: Callable[[WorkOrder, Record, PreparedSample | None], None],
        orders: Sequence[WorkOrder],
        process: WorkerProcess,
    ) -> None:
        self._provenance = provenance
        self._events = events
        self._on_record = on_record
        self._streams: dict[int, ResultStream] = {}
        self._probed: set[int] = set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._capacity = ByteBudget(_QUEUE_BYTES)
        self.errors: dict[int, StorageError] = {}
        """Why a run cannot be written, by number of the run."""
        self.attempts = AttemptLogs(orders, process, self._note_error)
        """`begin` comes before the work on a task."""

    def can_write(self, order: WorkOrder) -> bool:
        """Whether the run can be written. The first call for a run tries it. Only the worker's thread calls it."""
        if order.number not in self._probed:
            self._probed.add(order.number)
            try:
                order.directory.writer.require_writable()
            except StorageError as error:
                self.errors.setdefault(order.number, error)
        return order.number not in self.errors

    def write(self, image: Image, item: PreparedSample, record: Record) -> None:
        """Queue a finished image. Writing adds the file name, the size and its own seconds to `record`."""
        num_bytes = sample_bytes(item.sample, item.placed) + image.width * image.height * len(image.getbands())
        self._submit(item.order, lambda: self._finish(image, item, record), num_bytes)

    def fail(self, order: WorkOrder, record: Record) -> None:
        """Queue the record of a failed task."""
        self._submit(order, lambda: self._append(order, record, None), 0)

    def close(self, *, is_device_lost: bool = False) -> None:
        """Wait until everything in the queue is written. Tasks that were begun and not recorded are given back.

        If the device is lost, they are not: one of them may be the reason, as if it had ended the process.
        """
        self._pool.submit(self._flush)
        self._pool.shutdown(wait=True)
        if not is_device_lost:
            self.attempts.close()

    def drain(self) -> None:
        """Wait until everything in the queue is written, and go on."""
        self._pool.submit(self._flush).result()

    def _submit(self, order: WorkOrder, job: Callable[[], None], num_bytes: int) -> None:
        if order.number in self.errors:
            return
        amount = max(num_bytes, _QUEUE_BYTES // _QUEUE)
        if not self._capacity.try_acquire(amount):
            with self._events.span("wait", reason="write"):
                self._capacity.acquire(amount)
        self._pool.submit(job).add_done_callback(lambda future: self._done(order, future, amount))

    def _done(self, order: WorkOrder, future: Future[None], amount: int) -> None:
        self._capacity.release(amount)
        error = future.exception()
        if error is not None:
            self._note_error(order, error)

    def _note_error(self, order: WorkOrder, error: BaseException) -> None:
        text = f"{order.directory.address} cannot be written: {error}"
        self.errors.setdefault(order.number, StorageError(text))

    def _append(self, order: WorkOrder, record: Record, item: PreparedSample | None) -> None:
        if order.number in self.errors:
            return  # the image may be missing, and a record without its image would count as done
        self._stream(order).append(record)
        self.attempts.end(order.number, record.key)
        self._on_record(order, record, item)

    def _stream(self, order: WorkOrder) -> ResultStream:
        if order.number not in self._streams:
            self._streams[order.number] = order.directory.writer.results(order.config.output)
        return self._streams[order.number]

    def _flush(self) -> None:
        """Write the records that wait in memory, and open shards. Until then, other ranks do not see them."""
        for number, stream in self._streams.items():
            if number not in self.errors:
                try:
                    stream.flush()
                except OSError as error:
                    self._note_error(self.attempts.orders[number], error)

    def _finish(self, image: Image, item: PreparedSample, record: Record) -> None:
        """Write an image and its record. An image that cannot be encoded is a failed record; a full disk is not."""
        start = time.perf_counter()
        with self._events.span("write", tasks=1, runs=by_run([item])):
            try:
                result = restore(image, item.sample, item.placed.frame, item.order.config.output.paste)
                data = self._encode(result, item, record)
            except Exception as error:
                self._append(item.order, replace(record, status="failed", error=describe(error)), None)
                return
            file = image_key(record.key, item.order.config.output.format)
            self._stream(item.order).write_image(file, data)
        seconds = {**record.seconds, "write": time.perf_counter() - start}
        written = replace(
            record,
            file=file,
            seconds={stage: round(value, 6) for stage, value in seconds.items()},
            bytes=len(data),
            height=result.height,
            width=result.width,
        )
        self._append(item.order, written, item)

    def _encode(self, result: Image, item: PreparedSample, record: Record) -> bytes:
        output = item.order.config.output
        metadata = {
            "key": record.key,
            "sample_key": record.sample_key,
            "prompt": record.prompt,
            "seed": record.seed,
            "steps": record.steps,
            "guidance": record.guidance,
            **_second_texts(record),
            **self._provenance,
        }
        parameters = generation_parameters(record, item.order.config, result.size)
        return encode_image(result, output.format, output.quality, metadata, item.sample.icc_profile, parameters)


def _second_texts(record: Record) -> dict[str, str | float]:
    """The facts of an image that most images do not have."""
    texts = {} if record.prompt_2 is None else {"prompt_2": record.prompt_2}
    if record.negative_prompt is None:
        return {**texts}
    return {**texts, "negative_prompt": record.negative_prompt, "true_cfg_scale": record.true_cfg_scale}
