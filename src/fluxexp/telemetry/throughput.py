"""What one rank did so far, as totals over its events. Knows no clock of its own: time comes with the events."""

from __future__ import annotations

import threading
from typing import Any

from fluxexp.telemetry.events import Event

BUSY_SPANS = frozenset({"condition", "denoise", "decode"})
"""Work of the worker thread on its device. These spans follow one another, so their union is their sum."""
_ROUNDING_S = 1e-6
"""Sums of seconds that cancel out may differ by rounding; no batch is this short."""


class RankTotals:
    """Adds up the events and outcomes of one rank; safe to use from several threads.

    `num_images`, `num_failed`
        tasks that ended well or badly, warm-up included.
    `busy_s`
        time in condition, denoise and decode, warm-up and failed batches included.
    `wait_s`
        time in `wait`: for data, for the writer.
    `load_s`
        time in `load`; never part of throughput.
    `steal_s`
        time spent looking for and taking over other ranks' tasks.
    `stages`
        seconds by kind of span.
    `batch_size_mean`
        tasks per batch, warm-up left out; None before the first batch.
    `warmup_s`
        the part of `busy_s + wait_s` that lies in warm-up batches (first runs, compilation).
    `images_per_s`
        images outside warm-up / (busy_s + wait_s + steal_s - warmup_s); None while that time is zero.

    `read` and `write` overlap with the worker's own spans and count only where the worker waits for them.
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
        """Take in one span; fits as a listener of `EventLog`."""
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
        """Take in the outcome of tasks: where their records are made, not where their spans end.

        A failed batch may be tried again task by task, so spans alone would count some tasks twice.
        """
        with self._lock:
            self._num_images += images
            self._num_failed += failed

    def snapshot(self) -> dict[str, Any]:
        """All totals as JSON-able values, taken at one moment."""
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
