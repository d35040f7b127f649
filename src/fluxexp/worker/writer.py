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

from fluxexp.config.schema import Output
from fluxexp.data import restore
from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.storage.atomic import write_atomically
from fluxexp.storage.images import encode_image
from fluxexp.storage.layout import RunDirectory
from fluxexp.storage.manifest import ManifestWriter
from fluxexp.telemetry import EventLog
from fluxexp.worker.prefetch import Prepared

_QUEUE = 32


class ResultWriter:
    """Writes images and records. Every method may raise the StorageError of an earlier result: a full disk ends the
    rank instead of losing results one by one.
    """

    def __init__(
        self,
        directory: RunDirectory,
        output: Output,
        provenance: Mapping[str, Any],
        events: EventLog,
        on_record: Callable[[Record, Prepared | None], None],
    ) -> None:
        self._directory = directory
        self._output = output
        self._provenance = provenance
        self._events = events
        self._on_record = on_record
        self._manifest = ManifestWriter(directory.manifest)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._slots = threading.Semaphore(_QUEUE)
        self._error: Exception | None = None

    def write(self, image: Image, item: Prepared, record: Record) -> None:
        """Queue a finished image; `record` lacks only what writing adds: the file and the seconds it took."""
        self._submit(lambda: self._append(self._write_image(image, item, record), item))

    def fail(self, record: Record) -> None:
        """Queue the record of a failed task."""
        self._submit(lambda: self._append(record, None))

    def close(self) -> None:
        """Wait until all that was queued is on disk."""
        self._pool.shutdown(wait=True)
        try:
            self._manifest.close()
        except OSError as error:
            self._error = self._error or error
        self._raise_error()

    def _submit(self, job: Callable[[], None]) -> None:
        self._raise_error()
        self._slots.acquire()
        self._pool.submit(job).add_done_callback(self._done)

    def _done(self, future: Future[None]) -> None:
        self._slots.release()
        error = future.exception()
        if error is not None and self._error is None:
            self._error = error if isinstance(error, Exception) else RuntimeError(repr(error))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise StorageError(f"{self._directory.path} cannot be written: {self._error}") from self._error

    def _append(self, record: Record, item: Prepared | None) -> None:
        self._manifest.append(record)
        self._on_record(record, item)

    def _write_image(self, image: Image, item: Prepared, record: Record) -> Record:
        start = time.perf_counter()
        with self._events.span("write", tasks=1, synchronise=_nothing):
            result = restore(image, item.sample, item.placed.frame, self._output.paste)
            metadata = {
                "key": record.key,
                "sample_key": record.sample_key,
                "prompt": record.prompt,
                "seed": record.seed,
                "steps": record.steps,
                "guidance": record.guidance,
                **self._provenance,
            }
            data = encode_image(result, self._output.format, self._output.quality, metadata)
            file = self._directory.images / f"{record.key}.{self._output.format}"
            write_atomically(file, data)
        seconds = {**record.seconds, "write": time.perf_counter() - start}
        return replace(
            record,
            file=file.relative_to(self._directory.path).as_posix(),
            seconds={stage: round(value, 6) for stage, value in seconds.items()},
            height=result.height,
            width=result.width,
        )


def _nothing() -> None:
    """Writing does not wait for the device: the worker's next batch is on it."""
