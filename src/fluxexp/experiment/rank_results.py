"""Rank 0's wait for the results of all ranks. After an interruption it does not wait for ranks that have died."""

from __future__ import annotations

import time

from fluxexp.experiment.session_messages import HEARTBEAT, RESULT, RankResult
from fluxexp.experiment.session_stop import SessionStop
from fluxexp.parallel.topology import Topology

_POLL_S = 0.02
_LOOK_S = 0.5
_DEAD_AFTER_S = 5.0
"""After an interruption, a rank that sends no heartbeat for this long has died. A launcher gives 30 s in all."""


def wait_for_results(topology: Topology, stop: SessionStop) -> dict[int, RankResult]:
    """The results of all ranks, by rank. A rank that died during an interruption has a result with an error."""
    silence = _Silence(topology)
    results = {}
    for rank in range(topology.world_size):
        channel = RESULT.at(rank)
        while (result := channel.read(topology.coordinator)) is None:
            if stop.is_interrupted and silence.is_dead(rank):
                error = "it ended before its result, during the interruption"
                result = RankResult(rank=rank, device="unknown", finished_s=time.time(), error=error)
                break
            time.sleep(_POLL_S)
        results[rank] = result
    return results


class _Silence:
    """Which ranks send no heartbeat any more, by the clock of this process."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._looked_s = 0.0
        self._latest: dict[int, tuple[float | None, float]] = {}
        """For each rank, the time in its latest heartbeat, and when this process first saw that heartbeat."""

    def is_dead(self, rank: int) -> bool:
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            beats = HEARTBEAT.read_all(self._topology.coordinator)
            for other in range(self._topology.world_size):
                sent_s = beats[other].sent_s if other in beats else None
                if other not in self._latest or self._latest[other][0] != sent_s:
                    self._latest[other] = sent_s, now_s
        return now_s - self._latest[rank][1] > _DEAD_AFTER_S
