"""Leads workers that are given their tasks in chunks: deals the chunks, and gives those of lost workers to others.

It runs in the process that leads the session, in one thread. `WorkerPool` hides how workers are started and reached.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fluxexp.errors import RankError
from fluxexp.experiment.engine.group_piles import GroupPile
from fluxexp.experiment.engine.worker_messages import Instruction, TaskChunk, WorkerReport, WorkerStart
from fluxexp.experiment.pending_tasks import find_pending
from fluxexp.experiment.run_monitor import RunMonitor
from fluxexp.experiment.session_messages import Heartbeat, RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.session_stop import FailureLimit, SessionStop
from fluxexp.parallel.chunking import Chunk, ChunkDealer
from fluxexp.storage.process_deaths import DeathRegister
from fluxexp.telemetry import say

_POLL_S = 0.2
_SHOW_S = 1.0
_WAIT_S = 1.0
_MOST_REPORTS_PER_S = 200
"""Of all workers together, if there is no news. With more workers, each reports less often."""
_STOP_S = 60.0
"""How long the foreman waits for the last batches after an interruption."""


@dataclass(frozen=True, slots=True)
class WorkerNews:
    """What has happened to a worker: one of the three."""

    rank: int
    start: WorkerStart | None = None
    report: WorkerReport | None = None
    lost: str | None = None
    """Why it is lost."""


class WorkerPool(Protocol):
    """Starts workers, and carries the messages of each."""

    def wait(self, timeout_s: float) -> Sequence[WorkerNews]:
        """Wait for news of some workers. A rank is never used twice, also not for a worker that was started again."""
        ...

    def send(self, rank: int, instruction: Instruction) -> None:
        """Send an instruction to a worker that has reported. It reports again."""
        ...

    @property
    def is_exhausted(self) -> bool:
        """Whether no worker lives, and none will start."""
        ...


class Foreman:
    """Leads the work of one session.

    Args:
        session_plan: of the session.
        piles: the tasks of each group.
        pool: of the workers.
        chunk_s: seconds of work of a chunk.
        stop: of the session.
        run_monitor: shows progress.
    """

    def __init__(
        self,
        session_plan: SessionPlan,
        piles: Sequence[GroupPile],
        pool: WorkerPool,
        chunk_s: float,
        stop: SessionStop,
        run_monitor: RunMonitor,
    ) -> None:
        self._session_plan = session_plan
        self._piles = piles
        self._pool = pool
        self._dealer = ChunkDealer([group.pile for group in piles], chunk_s)
        self._stop = stop
        self._run_monitor = run_monitor
        self._limit = FailureLimit(session_plan.runs[0].plan.config.failures.max_failure_rate, stop)
        self._working: set[int] = set()
        """Ranks that have started and not ended."""
        self._ending: set[int] = set()
        """Those of them that were told to end."""
        self._starts: dict[int, WorkerStart] = {}
        self._beats: dict[int, Heartbeat] = {}
        self._returned: list[Chunk] = []
        """Chunks of workers that are lost or refused a group."""
        self._broken: list[int] = []
        """Workers that were lost since their deaths were counted."""
        self._shown_s = 0.0
        self._stopping_s: float | None = None
        self.results: dict[int, RankResult] = {}

    def lead(self) -> Mapping[int, RankResult]:
        """Lead the workers until all tasks have a record, or the session stops. Returns the result of each rank.

        Raises:
            RankError: no worker could start.
        """
        while not self._is_over():
            for news in self._pool.wait(_POLL_S):
                self._take(news)
            if self._returned:
                self._give_back()
            self._show()
        if not self.results:
            errors = sorted({start.error for start in self._starts.values() if start.error})
            raise RankError("\n    ".join(["no worker could start", *errors]))
        return self.results

    def _is_over(self) -> bool:
        if self._stop.is_requested:
            self._stopping_s = self._stopping_s or time.monotonic()
            if time.monotonic() - self._stopping_s > _STOP_S:
                for rank in sorted(self._working):
                    self._lose(rank, f"it has not stopped for {_STOP_S:g} s")
            return not self._working
        return not self._working and (self._is_done or self._pool.is_exhausted)

    @property
    def _is_done(self) -> bool:
        return not self._dealer.num_left and not self._dealer.is_working and not self._returned

    def _take(self, news: WorkerNews) -> None:
        if news.start is not None:
            self._begin(news.rank, news.start)
        elif news.lost is not None:
            self._lose(news.rank, news.lost)
        elif news.report is not None and news.rank in self._working:
            self._answer(news.rank, news.report)

    def _begin(self, rank: int, start: WorkerStart) -> None:
        self._starts[rank] = start
        if start.error is not None:
            say(f"rank {rank} on {start.host} cannot work: {start.error}", urgent=True)
            return
        self._working.add(rank)
        self._dealer.join(rank)
        self._pool.send(rank, self._instruction(rank, is_idle=True, wants_chunk=False))

    def _answer(self, rank: int, report: WorkerReport) -> None:
        """Note what a worker reports, and send its next instruction."""
        self._beats[rank] = Heartbeat(time.time(), report.figures)
        for number in report.finished:
            self._dealer.finish(rank, number)
        if report.pace is not None:
            self._dealer.note_pace(rank, report.pace)
        for group in report.refused:
            self._returned += self._dealer.refuse(rank, group)
        if report.result is not None:
            self._end(rank, report.result)
            return
        if self._returned:
            self._give_back()
        instruction = self._instruction(rank, is_idle=report.is_idle, wants_chunk=report.wants_chunk)
        self._pool.send(rank, instruction)

    def _instruction(self, rank: int, *, is_idle: bool, wants_chunk: bool) -> Instruction:
        wait_s = max(_WAIT_S, len(self._working) / _MOST_REPORTS_PER_S)
        if self._stop.is_requested:
            self._ending.add(rank)
            return Instruction(stop=self._stop.request, wait_s=wait_s)
        if wants_chunk and (chunk := self._dealer.deal(rank)) is not None:
            return Instruction(chunk=self._with_tasks(chunk), wait_s=wait_s)
        if is_idle:
            if self._is_done or self._dealer.refuses_all(rank):
                self._ending.add(rank)
                return Instruction(is_end=True, wait_s=wait_s)
            if (group := self._dealer.group_for(rank)) is not None:
                return Instruction(group=group, wait_s=wait_s)
        return Instruction(wait_s=wait_s)

    def _with_tasks(self, chunk: Chunk) -> TaskChunk:
        group = self._piles[chunk.group]
        return TaskChunk(
            number=chunk.number,
            group=chunk.group,
            tasks=tuple(map(group.task, chunk.positions)),
            costs=tuple(group.pile.cost(range(place, place + 1)) for place in chunk.positions),
            is_alone=chunk.is_alone,
        )

    def _end(self, rank: int, result: RankResult) -> None:
        """A worker has ended in order. What it has not made goes to others, unless the session stops."""
        self._working.discard(rank)
        self.results[rank] = result
        self._returned += self._dealer.leave(rank)

    def _lose(self, rank: int, reason: str) -> None:
        if rank not in self._working:
            return
        self._working.discard(rank)
        self._returned += self._dealer.leave(rank)
        self._broken.append(rank)
        self.results[rank] = RankResult.of_lost_rank(rank, reason, self._beats.get(rank))
        say(f"rank {rank} on {self._starts[rank].host} is lost: {reason}. Other ranks do its work.", urgent=True)

    def _give_back(self) -> None:
        """Give the tasks of lost workers back, without those that the store has."""
        chunks, self._returned = self._returned, []
        broken, self._broken = self._broken, []
        if self._stop.is_requested:
            return
        tasks = {chunk.number: [self._piles[chunk.group].task(place) for place in chunk.positions] for chunk in chunks}
        left, alone = self._without_result({run for found in tasks.values() for run, _ in found}, broken)
        for chunk in chunks:
            pairs = list(zip(chunk.positions, tasks[chunk.number], strict=True))
            positions = [place for place, task in pairs if task in left]
            self._dealer.give_back(chunk, positions, [place for place, task in pairs if task in alone])

    def _without_result(
        self, runs: Collection[int], broken: Sequence[int]
    ) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Tasks of some runs that this session has not made, and those of them that may have ended a process."""
        left: set[tuple[int, int]] = set()
        alone: set[tuple[int, int]] = set()
        for number in runs:
            run = self._session_plan.runs[number]
            store, reader = run.plan.directory.store, run.plan.directory.reader
            reader.refresh_records()
            deaths = DeathRegister(store).count(session=self._session_plan.session, ranks=broken)
            found = find_pending(run.plan, deaths)
            attempts = run.attempts
            left |= {(number, n) for n in found.numbers if found.attempts.get(n, 0) <= attempts.get(n, 0)}
            alone |= {(number, n) for n in (*found.suspects, *found.last_chances)} & left
        return left, alone

    def _show(self) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s >= _SHOW_S:
            self._shown_s = now_s
            self._limit.judge(beat.figures for beat in self._beats.values())
            self._run_monitor.show_progress(self._beats)
