"""Which ranks are lost: those whose process is dead, and those that hang.

A thread of each process publishes two counters: a heartbeat, and the progress of the main thread. A rank that waits for
another one judges it by its own clock: it is lost if its heartbeat does not change for `lost_after_s`, or if its
progress does not change for `hung_after_s`. A process with a hung GPU still has a heartbeat, but no progress. Only a
rank that waits anyway judges others, so healthy work never waits.

A process that makes no progress ends itself, too. Then its launcher does not wait for it for ever.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from fluxexp.errors import LostRankError, RankError
from fluxexp.parallel.channel import Channel
from fluxexp.parallel.coordinator import Coordinator

_EVERY_S = 1.0
_LOOKS_PER_GAP = 5
"""A gap between two looks counts as at most this number of intervals: all processes may have been suspended."""
_POLL_S = 0.1
_HURRY_S = 5.0
_EXIT_HUNG = 1
_STDERR = sys.__stderr__ or sys.stderr
"""The stream of the process, also if a library or a test replaced `sys.stderr`: `faulthandler` needs a real file."""


@dataclass(frozen=True, slots=True)
class LifeSign:
    """What a process says about itself. Only changes count, so clocks of machines need not agree."""

    heartbeat: int
    """Increases while the process lives."""
    progress: int
    """Increases while its main thread works, or waits for other ranks."""
    has_left: bool = False
    """Whether the process has left on purpose. It sends no more messages."""


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """After how many seconds a rank is lost. None: never."""

    lost_after_s: float | None = None
    """Without a heartbeat."""
    hung_after_s: float | None = None
    """Without progress."""


_LIFE_SIGN = Channel("life", LifeSign)
_LOST = Channel("lost", str)
"""Why rank 0 takes a rank for lost. That rank reads it, if it is alive after all."""


@dataclass(slots=True)
class _Seen:
    """The last life sign of a rank that this process has read, when, and for how long its counters are the same."""

    looked_s: float
    sign: LifeSign | None = None
    silent_s: float = 0.0
    idle_s: float = 0.0

    def look(self, sign: LifeSign | None, now_s: float) -> None:
        """Compare with the life sign of now."""
        gap_s = min(now_s - self.looked_s, _LOOKS_PER_GAP * _EVERY_S)
        self.looked_s = now_s
        self.silent_s += gap_s
        self.idle_s += gap_s
        if sign is None:
            return
        if self.sign is None or sign.heartbeat != self.sign.heartbeat:
            self.silent_s = 0.0
        if self.sign is None or sign.progress != self.sign.progress:
            self.idle_s = 0.0
        self.sign = sign


class Liveness:
    """Publishes the life signs of this process, and judges those of other ranks. All methods are thread-safe.

    Args:
        coordinator: the same for all sessions of the launch; None if no rank is to be judged, as in tests.
        limits: see `LivenessLimits`.
    """

    def __init__(self, coordinator: Coordinator | None, limits: LivenessLimits) -> None:
        self._coordinator = coordinator
        self._limits = limits
        self._lock = threading.Lock()
        self._seen: dict[int, _Seen] = {}
        self._heartbeat = self._progress = 0
        self._progress_s = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="liveness", daemon=True)
        self.taken_for_lost: str | None = None
        """Why rank 0 takes this rank for lost, although it is alive; None if rank 0 does not."""

    def start(self) -> None:
        """Start to publish life signs."""
        self._publish()
        self._thread.start()

    def leave(self) -> None:
        """Tell the other ranks that this process ends, and stop. Safe to call again."""
        if self._coordinator is None or self._stop.is_set():
            return
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()  # so that it does not publish another life sign after the last one
        faulthandler.cancel_dump_traceback_later()
        try:
            self._publish(has_left=True)
        except RankError:
            return  # the store is lost, so no rank can read it

    def touch(self) -> None:
        """Report progress. The main thread calls it when it has done something, and while it waits for other ranks."""
        with self._lock:
            self._progress += 1
            self._progress_s = time.monotonic()

    def hurry(self) -> None:
        """From now on, a rank without a heartbeat for 5 s is lost: a launcher that interrupts soon kills all ranks."""
        self._limits = replace(self._limits, lost_after_s=min(self._limits.lost_after_s or _HURRY_S, _HURRY_S))

    def expect(self, *ranks: int) -> Callable[[], None]:
        """A check to call again and again while this rank waits for a message of `ranks`.

        It reports progress of this rank, and raises LostRankError if one of `ranks` is lost.
        """

        def check() -> None:
            self.touch()
            for rank, reason in self.lost(ranks).items():
                raise LostRankError(f"rank {rank} is lost: {reason}; run the same command again to continue")

        return check

    def lost(self, ranks: Collection[int]) -> dict[int, str]:
        """Those of `ranks` that are lost, with the reason. Reads the life sign of each once a second at most.

        Raises:
            RankError: the store is lost.
        """
        if self._coordinator is None:
            return {}
        with self._lock:
            now_s = time.monotonic()
            others = [rank for rank in ranks if rank != self._coordinator.rank]
            for rank in others:
                seen = self._seen.get(rank)
                if seen is None or now_s - seen.looked_s >= _EVERY_S:
                    seen = self._seen.setdefault(rank, _Seen(now_s))
                    seen.look(_LIFE_SIGN.at(rank).read(self._coordinator), now_s)
            reasons = {rank: self._why_lost(self._seen[rank]) for rank in others}
        return {rank: reason for rank, reason in reasons.items() if reason is not None}

    def wait_for_end_of_others(self, timeout_s: float) -> None:
        """Wait until all other ranks have left or are lost, but not longer than `timeout_s`."""
        assert self._coordinator is not None
        others = range(self._coordinator.world_size)
        deadline_s = time.monotonic() + timeout_s
        while len(self.lost(others)) < len(others) - 1 and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)

    def declare_lost(self, rank: int, reason: str) -> None:
        """Tell `rank` that the session continues without it. Only rank 0 calls it."""
        if self._coordinator is not None:
            _LOST.at(rank).publish(self._coordinator, reason)

    def _why_lost(self, seen: _Seen) -> str | None:
        """Why a rank is lost; None if it is not."""
        if seen.sign is not None and seen.sign.has_left:
            return "its process has ended"
        silent_s, idle_s = seen.silent_s, seen.idle_s
        lost_s, hung_s = self._limits.lost_after_s, self._limits.hung_after_s
        if lost_s is not None and silent_s > lost_s:
            return f"no heartbeat for {silent_s:.0f} s (parallelism.lost_after_s={lost_s:g})"
        if hung_s is not None and idle_s > hung_s:
            return f"it has a heartbeat, but made no progress for {idle_s:.0f} s (parallelism.hung_after_s={hung_s:g})"
        return None

    def _publish(self, *, has_left: bool = False) -> None:
        assert self._coordinator is not None
        self._heartbeat += 1
        _LIFE_SIGN.publish_own(self._coordinator, LifeSign(self._heartbeat, self._progress, has_left))

    def _run(self) -> None:
        assert self._coordinator is not None
        hung_s = self._limits.hung_after_s
        while not self._stop.wait(_EVERY_S):
            if hung_s is not None:
                # This timer is a thread of C. It ends a process whose Python threads cannot run, because a call into a
                # library holds the interpreter's lock.
                faulthandler.dump_traceback_later(hung_s + 60, exit=True, file=_STDERR)
            try:
                self._publish()
                self.taken_for_lost = _LOST.at(self._coordinator.rank).read(self._coordinator)
            except RankError:
                pass  # the main thread meets the lost store, too, and reports it, unless it hangs
            if hung_s is not None and time.monotonic() - self._progress_s > hung_s:
                self._end_hung(hung_s)

    def _end_hung(self, hung_s: float) -> None:
        """End this process, which hangs. A rank above 0 first lets rank 0 end, because launchers end all ranks then."""
        assert self._coordinator is not None
        rank = self._coordinator.rank
        print(
            f"\nfluxexp: rank {rank} made no progress for {hung_s:g} s (parallelism.hung_after_s). It hangs, and ends. "
            "The stacks of its threads show where:",
            file=_STDERR,
            flush=True,
        )
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        if rank != 0:
            self._publish_until_rank_0_ends()
        os._exit(_EXIT_HUNG)

    def _publish_until_rank_0_ends(self) -> None:
        while not self._stop.wait(_EVERY_S):
            faulthandler.cancel_dump_traceback_later()
            try:
                self._publish()
                if self.lost((0,)):
                    return
            except RankError:
                return  # the store is lost, and rank 0 with it


def unwatched() -> Liveness:
    """A liveness without limits, which judges no rank."""
    return Liveness(None, LivenessLimits())
