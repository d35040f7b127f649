"""A foreman and its workers without an engine: the workers are threads of the test."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch

from fluxexp import __version__
from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.experiment import Outcome, run_experiment
from fluxexp.experiment.engine.chunk_worker import ChunkWorker
from fluxexp.experiment.engine.foreman import Foreman, WorkerNews
from fluxexp.experiment.engine.group_piles import group_piles
from fluxexp.experiment.engine.worker_messages import Instruction, WorkerReport, WorkerSession
from fluxexp.experiment.run_monitor import RunMonitor
from fluxexp.experiment.session_messages import SESSION, RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.session_stop import SessionStop
from fluxexp.experiment.workforce import WorkResults
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.topology import Topology
from fluxexp.storage.result_files import ENGINE_MARKER
from tests.program import FAKE

Compose = Callable[..., RunConfig]
_RANKS = (1, 2)


class Threads:
    """A `WorkerPool`. Worker `lost` is lost after its first report with a finished chunk."""

    def __init__(self, session: WorkerSession, lost: int | None) -> None:
        self._session = session
        self._lost = lost
        self._workers = {rank: ChunkWorker() for rank in _RANKS}
        self._executor = ThreadPoolExecutor(len(_RANKS))
        self._calls: dict[Future[WorkerReport], int] = {}
        self._is_started = False
        self.is_exhausted = False

    def wait(self, timeout_s: float) -> Sequence[WorkerNews]:
        if not self._is_started:
            self._is_started = True
            starts = {rank: worker.begin(self._session, rank) for rank, worker in self._workers.items()}
            self.is_exhausted = all(start.error for start in starts.values())
            return [WorkerNews(rank, start=start) for rank, start in starts.items()]
        done, _ = wait(self._calls, timeout_s, "FIRST_COMPLETED")
        return [self._news(self._calls.pop(call), call.result()) for call in done]

    def send(self, rank: int, instruction: Instruction) -> None:
        self._calls[self._executor.submit(self._workers[rank].exchange, instruction)] = rank

    def end(self) -> None:
        """End also the worker that counts as lost: it would go on in this process, and hear of later interruptions."""
        if self._lost is not None and self._is_started:
            self._executor.submit(self._workers[self._lost].exchange, Instruction(is_end=True)).result()
        self._executor.shutdown()

    def _news(self, rank: int, report: WorkerReport) -> WorkerNews:
        if rank == self._lost and report.finished:
            return WorkerNews(rank, lost="its node is gone")
        return WorkerNews(rank, report=report)


class ThreadWorkforce:
    def __init__(self, root: Address, cwd: Path, *, lost: int | None, marker: bytes) -> None:
        self.topology = Topology(0, 1, torch.device("cpu"), LocalCoordinator())
        self._root, self._cwd, self._lost, self._marker = root, cwd, lost, marker
        self._pool: Threads | None = None

    def describe(self, session_plan: SessionPlan) -> str:
        return "threads"

    def make_images(self, session_plan: SessionPlan, stop: SessionStop, run_monitor: RunMonitor) -> WorkResults:
        announced = SESSION.read(self.topology.coordinator)
        assert announced is not None
        assert announced.session is not None
        session_plan.directory.store.put(ENGINE_MARKER, b"marker")
        session = WorkerSession(
            announced=announced.session,
            root=str(self._root),
            working_directory=str(self._cwd),
            marker=self._marker,
            version=__version__,
        )
        self._pool = pool = Threads(session, self._lost)
        piles = group_piles(session_plan, is_cpu=True)
        return WorkResults(Foreman(session_plan, piles, pool, 1.0, stop, run_monitor).lead())

    def scoring_ranks(self, results: Mapping[int, RankResult]) -> Collection[int]:
        return (0,)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.end()


@pytest.fixture
def run(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)

    def start(*overrides: str, lost: int | None = None, marker: bytes = b"marker") -> Outcome:
        workforce = ThreadWorkforce(Address.of("outputs"), tmp_path, lost=lost, marker=marker)
        monkeypatch.setattr("fluxexp.experiment.engine.workforce_of", lambda *_: workforce)
        return run_experiment(compose(*FAKE, "sampling.batch_size=2", *overrides), Address.of("outputs"), [])

    return start


def test_workers_make_all_images(run: Callable[..., Outcome]) -> None:
    outcome = run("model.seconds_per_step=[0.001]")
    assert outcome.status == "complete"
    assert [rank["rank"] for rank in outcome.summary["ranks"]] == [1, 2]
    assert sum(rank["num_images"] for rank in outcome.summary["ranks"]) == outcome.summary["num_tasks"] == 16


@pytest.mark.timeout(40)
def test_what_a_lost_worker_had_is_made_by_another(run: Callable[..., Outcome]) -> None:
    outcome = run("model.seconds_per_step=[0.001]", "sampling.images_per_sample=4", lost=2)
    assert (outcome.status, outcome.summary["num_ok"]) == ("complete", 64)
    assert outcome.summary["ranks"][1]["error"] == "lost: its node is gone"


def test_a_worker_that_cannot_load_the_model_leaves_the_work_to_another(run: Callable[..., Outcome]) -> None:
    outcome = run("model.broken_rank=2", "model.seconds_per_step=[0.001]")
    assert (outcome.status, outcome.summary["num_ok"]) == ("complete", 16)
    assert outcome.summary["ranks"][1]["error"]
    assert outcome.summary["ranks"][1]["num_images"] == 0


def test_failed_tasks_have_records_and_are_not_made_again(run: Callable[..., Outcome]) -> None:
    outcome = run("model.fail_every=2", "failures.max_failure_rate=null")
    assert outcome.status == "complete_with_failures"
    assert outcome.summary["num_ok"] + outcome.summary["num_failed"] == 16


def test_workers_that_do_not_see_the_results_say_so(run: Callable[..., Outcome]) -> None:
    with pytest.raises(Exception, match="does not see the results in outputs/"):
        run(marker=b"another")
