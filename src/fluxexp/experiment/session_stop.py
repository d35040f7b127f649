"""A session that stops before all tasks are made: a signal interrupted a rank, or too many tasks failed.

The rank that knows of the reason publishes it. A thread of each rank looks for it, so that the loop of the worker reads
only a field, and no batch waits for the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from fluxexp.errors import RankError
from fluxexp.interruption import interruption
from fluxexp.parallel.channel import Channel
from fluxexp.parallel.coordinator import Coordinator
from fluxexp.parallel.liveness import Liveness, unwatched
from fluxexp.telemetry import RankFigures, say

MIN_TASKS = 20
"""`failures.max_failure_rate` is judged when at least this number of tasks was tried."""
_LOOK_S = 0.1
_LOOKS_PER_READ = 5
"""The thread reads the store at every fifth look, but notices a signal to its own process at every look."""


class StopReason(StrEnum):
    """Why a session stops."""

    INTERRUPTED = "interrupted"
    FAILURES = "failures"


@dataclass(frozen=True, slots=True)
class StopRequest:
    """The reason, and a text for the user."""

    reason: StopReason
    text: str


STOP = Channel("stop", StopRequest)


class SessionStop:
    """Whether this session stops. Its context is the work of the session.

    Args:
        coordinator: of the session.
        liveness: of the ranks.
    """

    def __init__(self, coordinator: Coordinator, liveness: Liveness | None = None) -> None:
        self._coordinator = coordinator
        self._liveness = liveness or unwatched()
        self.on_interruption: Callable[[], None] = lambda: None
        """Called once, from a thread, when this rank learns of an interruption."""
        self._request: StopRequest | None = None
        self._known: set[StopReason] = set()
        """Reasons that the store has had."""
        self._has_told = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop", daemon=True)

    @property
    def request(self) -> StopRequest | None:
        """Why the session stops; None if it does not. An interruption counts more than failures."""
        if interruption.requested is not None:
            return StopRequest(StopReason.INTERRUPTED, interruption.requested)
        return self._request

    @property
    def is_requested(self) -> bool:
        """Whether this rank takes no more tasks."""
        return self._request is not None or interruption.requested is not None

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal is the reason."""
        return self.request is not None and self.request.reason is StopReason.INTERRUPTED

    def stop_for_failures(self, text: str) -> None:
        """Stop the session on all ranks, because too many tasks failed."""
        self._request = self._request or StopRequest(StopReason.FAILURES, text)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        looks = 0
        while not self._end.wait(_LOOK_S):
            looks += 1
            try:
                self._look(reads=looks % _LOOKS_PER_READ == 0)
            except RankError:
                return  # the store is lost: the worker finds out at the end of its work

    def _look(self, *, reads: bool) -> None:
        try:
            self._exchange(reads=reads)
        finally:  # after the others know it: `on_interruption` writes a file, and can wait for a full disk
            self._tell()

    def _exchange(self, *, reads: bool) -> None:
        """Publish this rank's reason to stop, or read that of another rank."""
        own = self.request
        if own is not None and own.reason not in self._known:
            self._known.add(own.reason)
            STOP.publish(self._coordinator, own)
        elif reads and (found := STOP.read(self._coordinator)) is not None:
            self._known.add(found.reason)
            self._request = self._request or found
            if found.reason is StopReason.INTERRUPTED and interruption.requested is None:
                interruption.request(found.text)

    def _tell(self) -> None:
        if self.is_interrupted and not self._has_told:
            self._has_told = True
            self._liveness.hurry()
            if self._coordinator.rank == 0:
                say(
                    f"\n{interruption.requested}: finishing the batches in work; a second signal stops at once",
                    urgent=True,
                )
            self.on_interruption()


class FailureLimit:
    """Stops a session in which too many tasks fail (`failures.max_failure_rate`). Only rank 0 judges."""

    def __init__(self, max_rate: float | None, stop: SessionStop) -> None:
        self._max_rate = max_rate
        self._stop = stop

    def judge(self, figures: Iterable[RankFigures]) -> None:
        """Judge by the counts of all ranks."""
        if self._max_rate is None or self._stop.is_requested:
            return
        totals = [values.totals for values in figures]
        num_failed = sum(total.num_failed for total in totals)
        num_tried = num_failed + sum(total.num_images for total in totals)
        if num_tried >= MIN_TASKS and num_failed > self._max_rate * num_tried:
            limit = f"failures.max_failure_rate={self._max_rate:g}"
            self._stop.stop_for_failures(f"{num_failed} of {num_tried} tasks failed ({limit})")


def stop_figures(request: StopRequest | None, summary: Mapping[str, object]) -> dict[str, object]:
    """The part of a summary that says whether and why the session left something undone."""
    scoring = summary.get("scoring")
    is_scored = not (isinstance(scoring, Mapping) and scoring.get("error"))
    is_undone = summary["status"] == "incomplete" or not is_scored
    reason = request.reason if request is not None and is_undone else None
    return {
        "interrupted": reason is StopReason.INTERRUPTED,
        "stopped": request.text if request is not None and reason is StopReason.FAILURES else None,
    }
