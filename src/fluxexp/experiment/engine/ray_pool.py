"""Workers as actors of Ray. Ray places them, and notices when one dies. No image passes its object store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fluxexp.experiment.engine.chunk_worker import ChunkWorker
from fluxexp.experiment.engine.foreman import WorkerNews
from fluxexp.experiment.engine.worker_messages import Instruction, WorkerSession
from fluxexp.telemetry import say

_GROWTH_S = 5.0
"""How often the pool looks for new nodes."""
_RETRY_S = 1.0
"""How often the pool asks whether an actor has been started again."""
_WAITS_S = 20.0
"""After this time, a session whose actors have no resources says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorNeeds:
    """What Ray reserves for one actor."""

    num_gpus: float
    num_cpus: float
    resources: Mapping[str, float]
    max_restarts: int
    size: int = 1
    """Number of actors that make each image together, on one node."""

    def fits(self, available: Mapping[str, float]) -> int:
        """Number of replicas (of actors, if `size` is 1) that fit into the resources of a node."""
        numbers = [int(available.get(name, 0.0) / amount + 1e-9) for name, amount in self.bundle().items()]
        return min(numbers, default=0) // self.size

    def bundle(self) -> dict[str, float]:
        """What Ray reserves for one actor, by name."""
        needs = {"GPU": self.num_gpus, "CPU": self.num_cpus, **self.resources}
        return {name: amount for name, amount in needs.items() if amount > 0}

    def __str__(self) -> str:
        return ", ".join(f"{amount:g} {name}" for name, amount in self.bundle().items())


@dataclass(slots=True)
class _ActorSlot:
    """One actor, also while Ray starts it again; or the first actor of a replica."""

    actor: Any
    followers: list[Any] = field(default_factory=list)
    """The other actors of the replica."""
    group: Any = None
    """Ray's placement group of the replica."""
    rank: int = 0
    """Of its process. A process that is started again gets a new one."""
    served: list[Any] = field(default_factory=list)
    """The calls that the followers are in."""
    call: Any = None
    """The call that the actor is in: `begin` or `exchange`."""
    has_begun: bool = False
    retry_s: float = field(default=0.0)
    """When to try `begin` again, by `time.monotonic`."""


class RayPool:
    """See `WorkerPool`.

    Args:
        session: what the actors need to know of the session.
        needs: of one actor.
        num_actors: None for as many as the cluster has resources for, and more if it grows.
    """

    def __init__(self, session: WorkerSession, needs: ActorNeeds, num_actors: int | None) -> None:
        self._session = ray.put(session)
        self._needs = needs
        self._num_actors = num_actors
        self._slots: list[_ActorSlot] = []
        self._num_started = 0
        self._next_rank = needs.size
        self._restarts = 0
        """Replicas that were started again: Ray restarts single actors only."""
        self._grown_s = 0.0
        self._started_s = time.monotonic()
        self._has_said = False

    def wait(self, timeout_s: float) -> Sequence[WorkerNews]:
        """See `WorkerPool`."""
        now_s = time.monotonic()
        if now_s - self._grown_s >= _GROWTH_S:
            self._grown_s = now_s
            self._grow()
        for slot in self._slots:
            if slot.call is None and not slot.has_begun and now_s >= slot.retry_s:
                self._begin(slot)
        self._say_if_waiting(now_s)
        for slot in list(self._slots):
            self._watch_followers(slot)
        calls = {slot.call: slot for slot in self._slots if slot.call is not None}
        if not calls:
            time.sleep(timeout_s)
            return []
        # One at a time: `ray.get` on a list raises for the first lost actor, and drops what the others have said.
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0) if ready else ([], [])
        found = [self._news(calls[call]) for call in more or ready]
        return [news for news in found if news is not None]

    def send(self, rank: int, instruction: Instruction) -> None:
        """See `WorkerPool`."""
        for slot in self._slots:
            if slot.rank == rank and slot.call is None:
                slot.call = slot.actor.exchange.remote(instruction)
                return

    @property
    def is_exhausted(self) -> bool:
        """See `WorkerPool`."""
        return self._num_started > 0 and not self._slots

    def close(self) -> None:
        """End the actors."""
        for slot in list(self._slots):
            self._end(slot)

    def _grow(self) -> None:
        wanted = self._num_actors
        if wanted is None:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            # At least one: an autoscaler begins with a cluster that has no GPUs.
            wanted = max(1, sum(self._needs.fits(resources) for resources in nodes))
        for _ in range(self._num_started, wanted):
            self._num_started += 1
            self._slots.append(self._start())

    def _start(self) -> _ActorSlot:
        needs = self._needs
        options = {
            "num_gpus": needs.num_gpus,
            "num_cpus": needs.num_cpus,
            "resources": dict(needs.resources),
            "max_task_retries": 0,
        }
        if needs.size == 1:
            return _ActorSlot(ray.remote(ChunkWorker).options(**options, max_restarts=needs.max_restarts).remote())
        group = placement_group([needs.bundle()] * needs.size, strategy="STRICT_PACK")
        members = []
        for index in range(needs.size):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            members.append(ray.remote(ChunkWorker).options(**options, scheduling_strategy=place).remote())
        return _ActorSlot(members[0], members[1:], group)

    def _begin(self, slot: _ActorSlot) -> None:
        slot.rank, self._next_rank = self._next_rank, self._next_rank + self._needs.size
        if not slot.followers:
            slot.call = slot.actor.begin.remote(self._session, slot.rank)
            return
        # Ray replaces these references by their values before it calls `begin` and `serve`.
        point = slot.actor.meeting_point.remote()
        devices = [member.visible_devices.remote() for member in (slot.actor, *slot.followers)]
        slot.call = slot.actor.begin.remote(self._session, slot.rank, 0, point, *devices)
        slot.served = [
            follower.serve.remote(self._session, slot.rank + index, index, point, *devices)
            for index, follower in enumerate(slot.followers, 1)
        ]

    def _watch_followers(self, slot: _ActorSlot) -> None:
        """End a replica that has lost an actor. The call of its first actor then says that it is lost."""
        ready, slot.served = ray.wait(slot.served, num_returns=len(slot.served), timeout=0) if slot.served else ([], [])
        for served in ready:
            try:
                error = ray.get(served).error
            except RayError as lost:
                error = _words(lost)
            if error is not None:
                say(f"an actor of the replica of rank {slot.rank} has ended: {error}", urgent=True)
                ray.kill(slot.actor)

    def _news(self, slot: _ActorSlot) -> WorkerNews | None:
        """What the ended call of an actor says."""
        call, slot.call = slot.call, None
        try:
            answer = ray.get(call)
        except ActorUnavailableError as error:  # Ray starts it again, or its node is not reachable
            return self._lose(slot, error, is_gone=False)
        except ActorDiedError as error:
            return self._lose(slot, error, is_gone=True)
        except RayError as error:  # of the constructor or of the call: the actor is of no use
            return self._lose(slot, error, is_gone=True)
        if slot.has_begun:
            if answer.result is not None:  # the actor waits for the end of the session
                self._end(slot)
            return WorkerNews(slot.rank, report=answer)
        slot.has_begun = True
        if answer.error is not None:
            self._end(slot)
        return WorkerNews(slot.rank, start=answer)

    def _end(self, slot: _ActorSlot) -> None:
        for member in (slot.actor, *slot.followers):
            ray.kill(member)
        if slot.group is not None:
            remove_placement_group(slot.group)
        self._slots.remove(slot)

    def _lose(self, slot: _ActorSlot, error: Exception, *, is_gone: bool) -> WorkerNews | None:
        had_begun, slot.has_begun, rank = slot.has_begun, False, slot.rank
        slot.retry_s = time.monotonic() + _RETRY_S
        if is_gone or slot.followers:
            self._end(slot)
            if not had_begun:
                say(f"an actor could not start: {_words(error)}", urgent=True)
            elif slot.followers and self._restarts < self._needs.max_restarts * self._num_started:
                self._restarts += 1
                self._slots.append(self._start())
        return WorkerNews(rank, lost=_words(error)) if had_begun else None

    def _say_if_waiting(self, now_s: float) -> None:
        if self._has_said or now_s - self._started_s < _WAITS_S:
            return
        self._has_said = True
        num_waiting = sum(not slot.has_begun for slot in self._slots)
        if num_waiting:
            total = {name: amount for name, amount in ray.cluster_resources().items() if ":" not in name}
            has = ", ".join(f"{amount:g} {name}" for name, amount in sorted(total.items()) if "memory" not in name)
            say(f"note       {num_waiting} actor(s) wait for resources ({self._needs} each; the cluster has {has})")


def _words(error: Exception) -> str:
    """The line of Ray's error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
