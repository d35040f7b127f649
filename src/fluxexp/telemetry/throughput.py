"""Totals of one rank over its events. All times come from the events."""

from __future__ import annotations

import threading
from typing import Any

from fluxexp.telemetry.events import Event

BUSY_SPANS = frozenset({"condition", "denoise", "decode"})
"""Spans of the worker thread's work on its device. They never overlap, so their times can be added."""
_ROUNDING_S = 1e-6
"""A difference of sums below this is a rounding error, because no batch is so short."""


class RankTotals:
    """Adds up the events and outcomes of one rank. Several threads may use it.

    `num_images`, `num_failed`
        tasks that succeeded or failed.
    `busy_s`
        seconds in condition, denoise and decode, warm-up and failed batches included.
    `wait_s`
        seconds in `wait`: for data or for the writer.
    `load_s`
        seconds in `load`; not part of throughput.
    `steal_s`
        seconds in `steal`: looking for tasks of other ranks and taking them.
    `stages`
        seconds by kind of span.
    `batch_size_mean`
        tasks per batch, without warm-up; None before the first batch.
    `warmup_s`
        the part of `busy_s + wait_s` that lies in warm-up batches (first runs, compilation).
    `images_per_s`
        images / (busy_s + wait_s + steal_s - warmup_s); None while that time is zero.

    `read` and `write` overlap with the worker's own spans. They count only if the worker waits for them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_images = 0
        self._num_failed = 0
        self._busy_s = 0.0
        self._wait_s = 0.0
        self._load_s = 0.0
        self._warmup_s = 0.0
        self._stages: dict[str, float] = {}
        self._num_batches = 0
        self._num_batched = 0

    def add(self, event: Event) -> None:
        """Add one event. It can be a listener of an `EventLog`."""
        seconds = event.seconds * float(event.extra.get("share", 1.0))
        with self._lock:
            self._stages[event.span] = self._stages.get(event.span, 0.0) + seconds
            if event.span == "load":
                self._load_s += seconds
                return
            if event.span == "denoise" and not event.warmup and event.tasks != 0:  # 0: a part of another rank's batch
                self._num_batches += 1
                self._num_batched += event.tasks or 0
            if event.span in BUSY_SPANS:
                self._busy_s += seconds
            elif event.span == "wait":
                self._wait_s += seconds
            else:
                return
            if event.warmup:
                self._warmup_s += seconds

    def count(self, *, images: int = 0, failed: int = 0) -> None:
        """Add outcomes of tasks. The caller calls it when it makes the records, not at the end of spans.

        A failed batch is tried again task by task, so counting by spans would count some tasks twice.
        """
        with self._lock:
            self._num_images += images
            self._num_failed += failed

    def snapshot(self) -> dict[str, Any]:
        """Return all totals as values that JSON can represent, taken at one moment."""
        with self._lock:
            measured_s = self._busy_s + self._wait_s + self._stages.get("steal", 0.0) - self._warmup_s
            return {
                "num_images": self._num_images,
                "num_failed": self._num_failed,
                "busy_s": self._busy_s,
                "wait_s": self._wait_s,
                "load_s": self._load_s,
                "steal_s": self._stages.get("steal", 0.0),
                "stages": dict(self._stages),
                "batch_size_mean": self._num_batched / self._num_batches if self._num_batches else None,
                "warmup_s": self._warmup_s,
                "images_per_s": self._num_images / measured_s if measured_s > _ROUNDING_S else None,
            }
