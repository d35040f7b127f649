"""A rank that is lost during the scoring pass, with threads as ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxexp.address import Address
from fluxexp.config import RunConfig, check
from fluxexp.data import open_dataset
from fluxexp.experiment import run_experiment
from fluxexp.parallel import liveness as liveness_module
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.liveness import Liveness, LivenessLimits
from fluxexp.parallel.topology import Topology
from fluxexp.plan import Plan
from fluxexp.scoring import score_runs
from fluxexp.scoring.scorer import Scorer

Compose = Callable[..., RunConfig]
SMALL = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.limit=16", "tracking=disabled", "report=off")


class Dies(BaseException):
    """Ends a thread, as if its process had died."""


@pytest.fixture
def plan(compose: Compose, tmp_path: Path) -> Plan:
    """A run whose images exist, without scores."""
    made = compose(*SMALL, f"output.dir={tmp_path}", "metrics=none")
    check(made)
    run_experiment(made, Address.of(tmp_path), [])
    scored = compose(*SMALL, f"output.dir={tmp_path}", "metrics=basic")
    return Plan.of(scored, open_dataset(scored.dataset), Address.of(tmp_path))


def test_rank_0_computes_the_scores_that_a_lost_rank_has_taken(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness_module, "_EVERY_S", 0.02)
    limits = LivenessLimits(lost_after_s=0.5)
    topologies = [
        Topology(rank, 2, torch.device("cpu"), coordinator, 2, Liveness(coordinator.part("life", rank, 2), limits))
        for rank, coordinator in enumerate(LocalCoordinator.group(2))
    ]
    has_taken = threading.Event()
    score = Scorer.score

    def dying(self: Scorer, entries: Iterable[Any]) -> None:
        if threading.current_thread() is not threading.main_thread():
            has_taken.set()
            raise Dies
        assert has_taken.wait(10), "rank 0 must not score everything before rank 1 has taken a part"
        score(self, entries)

    monkeypatch.setattr(Scorer, "score", dying)

    def rank_1() -> None:
        with pytest.raises(Dies):
            score_runs(topologies[1], [plan], (), None, ())

    thread = threading.Thread(target=rank_1)
    thread.start()
    report = score_runs(topologies[0], [plan], (None,), None, (0, 1))
    thread.join()
    assert report.error is None
    assert report.num_scored == 16
    assert len(plan.directory.reader.scores()) == 16
