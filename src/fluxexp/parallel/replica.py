"""A replica: the ranks that make each image together, and their messages around the collectives of a batch.

The first rank leads: it takes tasks and announces each batch. The other ranks follow: they poll the coordinator for the
next batch, for hours if necessary. Collectives run only inside a batch, when all ranks work on it. After each batch
every rank publishes its outcome before any rank continues. If the batch failed on one rank, all ranks abort the process
group, so that no rank waits for one that has failed, and make a new one. This module knows neither models nor tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypeVar

from fluxexp.errors import LostRankError, PeerError, RankError
from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.coordinator import Coordinator
from fluxexp.parallel.liveness import Liveness, unwatched
from fluxexp.parallel.replica_messages import BATCH, END, LEFT, LOADED, OUTCOME, BatchOutcome, LoadOutcome, ReplicaEnd
from fluxexp.parallel.topology import Topology, is_device_lost
from fluxexp.parallel.watch import Watch

E = TypeVar("E", bound=BaseException | None)

_POLL_S = 0.002
_PATIENCE_S = 900.0
"""How long a rank waits for the outcomes of the others after a batch: longer than the timeout of collectives."""
_PATIENCE_AFTER_FAILURE_S = 60.0


class Replica:
    """One rank's part in a replica. Use it from one thread.

    Args:
        coordinator: of the ranks of this replica only.
        collectives: of the same ranks, not yet opened.
        first_rank: rank of the leader among all ranks.
        liveness: says which ranks are lost.
    """

    def __init__(
        self, coordinator: Coordinator, collectives: Collectives, first_rank: int, liveness: Liveness | None = None
    ) -> None:
        self._coordinator = coordinator
        self.collectives = collectives
        self._first_rank = first_rank
        self._liveness = liveness or unwatched()
        self._number = 0
        self._is_lost = False

    @classmethod
    def of(cls, topology: Topology, size: int, name: str) -> Replica:
        """The replica of `size` consecutive ranks that this rank belongs to. `name` is unique in the session."""
        first = topology.rank - topology.rank % size
        coordinator = topology.coordinator.part(f"{name}/{first}", topology.rank - first, size)
        collectives = Collectives(coordinator.group_store(), coordinator.rank, size, topology.device)
        return cls(coordinator, collectives, first, topology.liveness)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._coordinator.world_size

    @property
    def is_leader(self) -> bool:
        """Whether this rank takes the tasks and announces batches."""
        return self._coordinator.rank == 0

    @contextmanager
    def loading(self) -> Generator[None]:
        """Context for what each rank does before the first batch. At its end the process group is open.

        Raises:
            RankError: another rank failed in it.
            LostRankError: another rank is lost.
        """
        try:
            yield
        except BaseException as error:
            LOADED.publish_own(self._coordinator, LoadOutcome(_words(error)))
            raise
        LOADED.publish_own(self._coordinator, LoadOutcome(None))
        for rank, outcome in LOADED.wait_all(self._coordinator, self._expect).items():
            if outcome.error is not None:
                raise RankError(f"rank {self._first_rank + rank} of the same replica failed to load: {outcome.error}")
        self.collectives.open()

    def decline(self, error: BaseException) -> None:
        """Tell the ranks that wait in `loading` that this rank will not take part."""
        LOADED.publish_own(self._coordinator, LoadOutcome(_words(error)))

    def announce(self, text: str) -> None:
        """Announce the next batch. Only the leader calls it."""
        BATCH.at(self._number).publish(self._coordinator, text)

    def next(self, while_waiting: Callable[[], None] = lambda: None) -> str | None:
        """Wait for the leader's next batch; None if there are no more. `while_waiting` is called between polls.

        Raises:
            RankError: the leader cannot continue.
            LostRankError: the leader is lost.
        """
        check = self._expect(0)
        while True:
            if (text := BATCH.at(self._number).read(self._coordinator)) is not None:
                return text
            if (end := END.read(self._coordinator)) is ReplicaEnd.DONE:
                return None
            if end is not None:
                raise self._lost(RankError(f"rank {self._first_rank}, which leads this replica, stopped: {end}"))
            try:
                check()
            except LostRankError as error:
                raise self._lost(error) from None
            while_waiting()
            time.sleep(_POLL_S)

    @contextmanager
    def together(self, forget: Callable[[], None]) -> Generator[None]:
        """Context for one batch, entered on all ranks: the batch fails on all of them or on none.

        Args:
            forget: drops what depends on the process group, such as CUDA graphs; called if the batch failed.

        Raises:
            PeerError: it failed on another rank; the next batch may be tried.
            LostRankError: another rank is lost or cannot continue, and the replica with it.
            RankError: another rank sends no message, or the store is lost.
        """
        number, error = self._number, None
        self._number += 1
        with Watch(lambda: self._failed_elsewhere(number) or bool(self._lost_ranks()), self.collectives.abort):
            try:
                yield
            except BaseException as raised:
                error = raised
        is_final = error is not None and _is_final(error)
        # A rank that fails publishes that before it aborts the group. A later error here only follows from the abort.
        is_echo = error is not None and not is_final and self._failed_elsewhere(number)
        words = None if error is None or is_echo else _words(error)
        OUTCOME.at(number).publish_own(self._coordinator, BatchOutcome(error is None, words, is_final))
        if error is not None:
            self.collectives.abort()
        if error is not None and is_final:
            raise self._lost(error)
        self._liveness.touch()
        outcomes = self._wait_for_outcomes(number, _PATIENCE_S if error is None else _PATIENCE_AFTER_FAILURE_S)
        if self.is_leader:
            self._delete_messages(number)
        if all(outcome.is_ok for outcome in outcomes.values()):
            return
        self.collectives.abort()
        forget()
        self.collectives.close()
        causes = [(rank, outcome) for rank, outcome in outcomes.items() if outcome.error is not None]
        rank, cause = max(causes, key=lambda item: item[1].is_lost)
        words = f"rank {self._first_rank + rank} of the same replica: {cause.error}"
        if cause.is_lost:
            raise self._lost(LostRankError(words))
        self.collectives.open()
        if error is not None and not is_echo:
            raise error
        raise PeerError(words)

    def break_off(self) -> None:
        """Stop after an error outside of a batch, so that no rank waits for this one."""
        self._lost(None)
        if self.is_leader:
            with suppress(RankError, RuntimeError):  # the store itself may be lost
                END.publish(self._coordinator, ReplicaEnd.FAILED)

    def leave(self) -> None:
        """Leave the replica. All ranks call it after they dropped what depends on the process group."""
        if not self._is_lost:
            if self.is_leader:
                END.publish(self._coordinator, ReplicaEnd.DONE)
            LEFT.publish_own(self._coordinator, True)
            deadline_s = time.monotonic() + _PATIENCE_AFTER_FAILURE_S
            # Another rank may still read from the memory of this device.
            while len(LEFT.read_all(self._coordinator)) < self.size and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
        self.collectives.close()

    def _lost(self, error: E) -> E:
        """Mark the replica as lost and abort its process group. Returns `error`, for the caller to raise."""
        self._is_lost = True
        self.collectives.abort()
        return error

    def _expect(self, rank: int) -> Callable[[], None]:
        """Check that `rank` of this replica is not lost."""
        return self._liveness.expect(self._first_rank + rank)

    def _lost_ranks(self) -> dict[int, str]:
        """The lost ranks of this replica, by their number among all ranks, with the reasons."""
        return self._liveness.lost(range(self._first_rank, self._first_rank + self.size))

    def _failed_elsewhere(self, number: int) -> bool:
        outcomes = OUTCOME.at(number).read_all(self._coordinator)
        return any(not outcome.is_ok for rank, outcome in outcomes.items() if rank != self._coordinator.rank)

    def _wait_for_outcomes(self, number: int, patience_s: float) -> dict[int, BatchOutcome]:
        """The outcomes of batch `number` by rank, once all ranks have published theirs."""
        deadline_s = time.monotonic() + patience_s
        while len(outcomes := OUTCOME.at(number).read_all(self._coordinator)) < self.size:
            silent = [self._first_rank + rank for rank in sorted(set(range(self.size)) - outcomes.keys())]
            if lost := {rank: reason for rank, reason in self._lost_ranks().items() if rank in silent}:
                reasons = "; ".join(f"rank {rank} of the same replica is lost: {why}" for rank, why in lost.items())
                raise self._lost(LostRankError(reasons))
            if time.monotonic() > deadline_s:
                raise self._lost(
                    RankError(
                        f"no message from rank(s) {silent} of the same replica for {patience_s:.0f} s; "
                        "if they hang, end the run and start it again"
                    )
                )
            time.sleep(_POLL_S)
        return outcomes

    def _delete_messages(self, number: int) -> None:
        """Delete the messages that every rank has read: this batch, and the outcomes of the batch before."""
        BATCH.at(number).delete(self._coordinator)
        for rank in range(self.size if number else 0):
            OUTCOME.at(number - 1).at(rank).delete(self._coordinator)


def _is_final(error: BaseException) -> bool:
    """Whether a rank that raised `error` cannot make more batches."""
    return is_device_lost(error) or isinstance(error, RankError) or not isinstance(error, Exception)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
