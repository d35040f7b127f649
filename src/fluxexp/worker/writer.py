"""Takes results off the worker's hands: back to the sample's size, to a file, and into the manifest, in that order.

One thread does it all, so that encoding overlaps with the next batch and the manifest has one owner. The queue is
bounded: a slow disk slows the worker down instead of filling the memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL.Image import Image

from fluxexp.data import restore
from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.storage.atomic import write_atomically
from fluxexp.storage.image_files import encode_image
from fluxexp.storage.manifest import ManifestWriter
from fluxexp.telemetry import EventLog
from fluxexp.worker.assignment import WorkOrder, by_run
from fluxexp.worker.prefetch import PreparedSample

_QUEUE = 32


class ResultWriter:
    """Writes images and records, each into its own run's directory.

    A directory that cannot be written ends the work on its run, instead of losing results one by one: what comes for it
    afterwards is dropped, `errors` says why, and the other runs go on.
    """

    def __init__(
        self,
        provenance: Mapping[str, Any],
        events: EventLog,
        on_record: Callable[[WorkOrder, Record, PreparedSample | None], None],
    ) -> None:
        self._provenance = provenance
        self._events = events
        self._on_record = on_record
        self._manifests: dict[int, ManifestWriter] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._slots = threading.Semaphore(_QUEUE)
        self.errors: dict[int, StorageError] = {}
        """By number of the run."""

    def write(self, image: Image, item: PreparedSample, record: Record) -> None:
        """Queue a finished image; `record` lacks only what writing adds: the file and the seconds it took."""
        self._submit(item.order, lambda: self._append(item.order, self._write_image(image, item, record), item))

    def fail(self, order: WorkOrder, record: Record) -> None:
        """Queue the record of a failed task."""
        self._submit(order, lambda: self._append(order, record, None))

    def close(self) -> None:
        """Wait until all that was queued is on disk."""
        self._pool.shutdown(wait=True)
        for number, manifest in self._manifests.items():
            try:
                manifest.close()
            except OSError as error:
                self.errors.setdefault(number, StorageError(f"a manifest cannot be written: {error}"))

    def _submit(self, order: WorkOrder, job: Callable[[], None]) -> None:
        if order.number in self.errors:
            return
        if not self._slots.acquire(blocking=False):
            with self._events.span("wait", reason="write"):
                self._slots.acquire()
        self._pool.submit(job).add_done_callback(lambda future: self._done(order, future))

    def _done(self, order: WorkOrder, future: Future[None]) -> None:
        self._slots.release()
        error = future.exception()
        if error is not None:
            text = f"{order.directory.path} cannot be written: {error}"
            self.errors.setdefault(order.number, StorageError(text))

    def _append(self, order: WorkOrder, record: Record, item: PreparedSample | None) -> None:
        if order.number in self.errors:
            return  # its record would say that it was done
        if order.number not in self._manifests:
            self._manifests[order.number] = ManifestWriter(order.directory.manifest)
        self._manifests[order.number].append(record)
        self._on_record(order, record, item)

    def _write_image(self, image: Image, item: PreparedSample, record: Record) -> Record:
        start = time.perf_counter()
        directory, output = item.order.directory, item.order.config.output
        with self._events.span("write", tasks=1, runs=by_run([item])):
            result = restore(image, item.sample, item.placed.frame, output.paste)
            metadata = {
                "key": record.key,
                "sample_key": record.sample_key,
                "prompt": record.prompt,
                "seed": record.seed,
                "steps": record.steps,
                "guidance": record.guidance,
                **self._provenance,
            }
            data = encode_image(result, output.format, output.quality, metadata)
            file = directory.images / f"{record.key}.{output.format}"
            write_atomically(file, data)
        seconds = {**record.seconds, "write": time.perf_counter() - start}
        return replace(
            record,
            file=file.relative_to(directory.path).as_posix(),
            seconds={stage: round(value, 6) for stage, value in seconds.items()},
            height=result.height,
            width=result.width,
        )
