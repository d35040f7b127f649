"""Totals of one rank over its events. All times come from the events."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxexp.telemetry.events import Event

BUSY_SPANS = frozenset({"condition", "denoise", "decode"})
"""Spans of the worker thread's work on its device. They never overlap, so their times can be added."""
_ROUNDING_S = 1e-6
"""A difference of sums below this is a rounding error, because no batch is so short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a rank did up to one moment, or what it did for one run. Seconds are of the rank's own threads.

    `read` and `write` overlap with the worker's own spans. They count only if the worker waits for them.
    """

    num_images: int = 0
    """Tasks that succeeded."""
    num_failed: int = 0
    """Tasks that failed."""
    busy_s: float = 0.0
    """Seconds in condition, denoise and decode, warm-up and failed batches included."""
    wait_s: float = 0.0
    """Seconds in `wait`: for data or for the writer."""
    load_s: float = 0.0
    """Seconds in `load`; not part of throughput."""
    steal_s: float = 0.0
    """Seconds in `steal`: looking for tasks of other ranks and taking them."""
    warmup_s: float = 0.0
    """The part of `busy_s + wait_s` that lies in warm-up batches (first runs, compilation)."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds by kind of span."""
    batch_size_mean: float | None = None
    """Tasks per batch, without warm-up; None before the first batch."""
    work: float = 0.0
    """Work of the batches that were denoised, without warm-up: transformer passes times tokens of all images."""
    work_s: float = 0.0
    """Seconds in which this work was done."""
    until_s: float | None = None
    """The latest end of a busy span or of loading, in seconds since the epoch; None before the first."""

    @property
    def measured_s(self) -> float:
        """Seconds that count for throughput: `busy_s + wait_s + steal_s - warmup_s`."""
        return self.busy_s + self.wait_s + self.steal_s - self.warmup_s

    @property
    def images_per_s(self) -> float | None:
        """Images per second of `measured_s`; None while that is zero."""
        return self.num_images / self.measured_s if self.measured_s > _ROUNDING_S else None

    @property
    def work_per_s(self) -> float | None:
        """The rate at which the device denoises, which does not depend on how many tasks the rank had; None if unknown.

        A device that is slower than the others is visible in it, even if work stealing keeps all ranks equally busy.
        """
        return self.work / self.work_s if self.work > 0 and self.work_s > _ROUNDING_S else None


class RankTotals:
    """Adds up the events and outcomes of one rank. Several threads may use it."""

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
        self._work = 0.0
        self._work_s = 0.0
        self._until_s: float | None = None

    def add(self, event: Event) -> None:
        """Add one event. It can be a listener of an `EventLog`."""
        share = float(event.extra.get("share", 1.0))
        seconds = event.seconds * share
        with self._lock:
            self._stages[event.span] = self._stages.get(event.span, 0.0) + seconds
            if event.span in BUSY_SPANS or event.span == "load":
                self._until_s = max(self._until_s or event.end_s, event.end_s)
            if (work := event.extra.get("work")) and event.error is None:
                self._work += float(work) * share
                self._work_s += seconds
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

    def snapshot(self) -> Totals:
        """Return all totals, taken at one moment."""
        with self._lock:
            return Totals(
                num_images=self._num_images,
                num_failed=self._num_failed,
                busy_s=self._busy_s,
                wait_s=self._wait_s,
                load_s=self._load_s,
                steal_s=self._stages.get("steal", 0.0),
                warmup_s=self._warmup_s,
                stages=dict(self._stages),
                batch_size_mean=self._num_batched / self._num_batches if self._num_batches else None,
                work=self._work,
                work_s=self._work_s,
                until_s=self._until_s,
            )
