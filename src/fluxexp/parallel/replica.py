"""Ranks that make images together, as one replica of the model: what they say to each other around their collectives.

The first of them leads: it takes tasks and announces each batch, the others wait for what it announces, for hours if
need be, through the store. Collectives run within a batch alone, where all are at work. After each batch every rank
says how it went before any goes on; if it failed on one, the links are broken off, so that nobody waits for what will
not come, and made anew. Knows no model and no tasks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from fluxexp.errors import PeerError, RankError
from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.coordinator import Coordinator, connect
from fluxexp.parallel.topology import Topology, is_device_lost

E = TypeVar("E", bound=BaseException | None)

_POLL_S = 0.002
_WATCH_S = 0.05
_PATIENCE_S = 900.0
"""How long a rank waits for the others when it is done with a batch: longer than collectives wait."""
_PATIENCE_AFTER_FAILURE_S = 60.0


class Replica:
    """One rank's part in a replica. Its methods are for one thread.

    Args:
        meeting: of these ranks alone.
        links: among them, closed.
        first_rank: the leader's among all ranks, for messages.
    """

    def __init__(self, coordinator: Coordinator, collectives: Collectives, first_rank: int) -> None:
        self._coordinator = coordinator
        self.collectives = collectives
        self._first_rank = first_rank
        self._number = 0
        self._is_lost = False

    @classmethod
    def of(cls, topology: Topology, size: int, name: str) -> Replica:
        """The replica of `size` neighbouring ranks that this one belongs to; `name` is its own in the session."""
        first = topology.rank - topology.rank % size
        coordinator = topology.coordinator.part(f"{name}/{first}", topology.rank - first, size)
        # A connection of its own: links wait on theirs while other threads use the meeting's.
        store = PrefixStore(f"{topology.coordinator.name}/{coordinator.name}", connect(topology.world_size))
        return cls(coordinator, Collectives(store, coordinator.rank, size, topology.device), first)

    @property
    def size(self) -> int:
        """Ranks that it is made of."""
        return self._coordinator.world_size

    @property
    def is_leader(self) -> bool:
        """Whether this rank takes the tasks."""
        return self._coordinator.rank == 0

    @contextmanager
    def loading(self) -> Generator[None]:
        """Around what each rank has to do before the first batch; afterwards the links are open.

        Raises:
            RankError: another rank could not do it.
        """
        try:
            yield
        except BaseException as error:
            self._coordinator.publish_own("loaded", _words(error))
            raise
        self._coordinator.publish_own("loaded", "")
        for rank, problem in self._coordinator.wait_all("loaded").items():
            if problem:
                raise RankError(f"rank {self._first_rank + rank}, which makes images with this one, said: {problem}")
        self.collectives.open()

    def decline(self, error: BaseException) -> None:
        """Tell those that wait in `loading` that this rank will not come."""
        self._coordinator.publish_own("loaded", _words(error))

    def announce(self, text: str) -> None:
        """Say what the next batch is; on the leader."""
        self._coordinator.publish(f"batch/{self._number}", text)

    def next(self, while_waiting: Callable[[], None] = lambda: None) -> str | None:
        """What the leader announced, as soon as it does; None at the end. `while_waiting` is called now and then.

        Raises:
            RankError: the leader cannot go on.
        """
        while True:
            if (text := self._coordinator.read(f"batch/{self._number}")) is not None:
                return str(text)
            if (end := self._coordinator.read("end")) == "done":
                return None
            if end is not None:
                raise self._lost(RankError(f"rank {self._first_rank}, which makes images with this one, {end}"))
            while_waiting()
            time.sleep(_POLL_S)

    @contextmanager
    def together(self, forget: Callable[[], None]) -> Generator[None]:
        """Around one batch, on all ranks: it fails on all of them or on none.

        Args:
            forget: gives up what was made with the links, as CUDA graphs are; called if the batch failed.

        Raises:
            PeerError: it failed on another rank; the next batch may be tried.
            RankError: another rank is lost, and the replica with it.
        """
        number, error = self._number, None
        self._number += 1
        with _Watch(lambda: self._failed_elsewhere(number), self.collectives.abort):
            try:
                yield
            except BaseException as raised:
                error = raised
        is_final = error is not None and _is_final(error)
        # Whoever fails says so before its links break off: an error after that is but the broken links'.
        is_echo = error is not None and not is_final and self._failed_elsewhere(number)
        words = None if error is None or is_echo else _words(error)
        self._coordinator.publish_own(f"said/{number}", {"is_ok": error is None, "error": words, "is_lost": is_final})
        if error is not None:
            self.collectives.abort()
        if error is not None and is_final:
            raise self._lost(error)
        said = self._hear(number, _PATIENCE_S if error is None else _PATIENCE_AFTER_FAILURE_S)
        if self.is_leader:
            self._clean(number)
        if all(values["is_ok"] for values in said.values()):
            return
        self.collectives.abort()
        forget()
        self.collectives.close()
        causes = [(rank, values) for rank, values in said.items() if values["error"] is not None]
        rank, cause = max(causes, key=lambda item: item[1]["is_lost"])
        words = f"rank {self._first_rank + rank}, which makes images with this one: {cause['error']}"
        if cause["is_lost"]:
            raise self._lost(RankError(words))
        self.collectives.open()
        if error is not None and not is_echo:
            raise error
        raise PeerError(words)

    def break_off(self) -> None:
        """Something went wrong outside of a batch: nobody is to wait for this rank any more."""
        self._lost(None)
        if self.is_leader:
            with suppress(RankError, RuntimeError):  # the store may be what was lost
                self._coordinator.publish("end", "failed")

    def leave(self) -> None:
        """Part from the others, on all ranks when they are done; what was made with the links is given up by now."""
        if not self._is_lost:
            if self.is_leader:
                self._coordinator.publish("end", "done")
            self._coordinator.publish_own("left", True)
            deadline_s = time.monotonic() + _PATIENCE_AFTER_FAILURE_S
            # A device that is done may still be read from by another that is not.
            while len(self._coordinator.read_all("left")) < self.size and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
        self.collectives.close()

    def _lost(self, error: E) -> E:
        """There is no going on with the others: let go of whatever waits for them; `error`, to be raised."""
        self._is_lost = True
        self.collectives.abort()
        return error

    def _failed_elsewhere(self, number: int) -> bool:
        said = self._coordinator.read_all(f"said/{number}")
        return any(not values["is_ok"] for rank, values in said.items() if rank != self._coordinator.rank)

    def _hear(self, number: int, patience_s: float) -> dict[int, Any]:
        """How batch `number` went, by rank, once all have said."""
        deadline_s = time.monotonic() + patience_s
        while len(said := self._coordinator.read_all(f"said/{number}")) < self.size:
            if time.monotonic() > deadline_s:
                silent = sorted(self._first_rank + rank for rank in set(range(self.size)) - said.keys())
                raise self._lost(
                    RankError(f"rank(s) {silent}, which make images with this one, say nothing for {patience_s:.0f} s")
                )
            time.sleep(_POLL_S)
        return said

    def _clean(self, number: int) -> None:
        """The batch before this one is known to all: its keys are no longer needed."""
        self._coordinator.forget(f"batch/{number}")
        for rank in range(self.size if number else 0):
            self._coordinator.forget(f"said/{number - 1}/{rank}")


class _Watch:
    """Calls `react` once `happened` says so; looks from a thread while its context is entered."""

    def __init__(self, happened: Callable[[], bool], react: Callable[[], None]) -> None:
        self._happened = happened
        self._react = react
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_S):
            try:
                if self._happened():
                    self._react()
                    return
            except RankError:  # the store is gone: the batch's end will find out
                return


def _is_final(error: BaseException) -> bool:
    """Whether the rank that raised it makes no more batches."""
    return is_device_lost(error) or isinstance(error, RankError) or not isinstance(error, Exception)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
