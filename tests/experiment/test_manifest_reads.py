"""Rank 0 reads each manifest once before the work, and once after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.experiment import SweepPoint, run_experiment, run_sweep
from fluxexp.storage.local_store import LocalStore

Compose = Callable[..., RunConfig]
SMALL = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.limit=2", "tracking=disabled")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each manifest stream was read."""
    counted: Counter[str] = Counter()
    read = LocalStore.records

    def records(self: LocalStore, stream: str) -> list[bytes]:
        if stream.startswith("manifest/"):
            counted[f"{self.path.name}/{stream}"] += 1
        return read(self, stream)

    monkeypatch.setattr(LocalStore, "records", records)
    return counted


def test_a_run_with_scores_report_and_contact_sheet(compose: Compose, tmp_path: Path, reads: Counter[str]) -> None:
    first = run_experiment(compose(*SMALL), Address.of(tmp_path), [])
    assert (first.address.local_path() / "contact_sheet.png").exists()
    assert first.summary["scoring"]["num_scored"] == 2
    assert list(reads.values()) == [1], "the new stream, after the work"
    reads.clear()
    run_experiment(compose(*SMALL, "dataset.limit=3"), Address.of(tmp_path), [])
    assert sorted(reads.values()) == [1, 2], "the new stream once, the old one before and after the work"
    reads.clear()
    run_experiment(compose(*SMALL, "dataset.limit=3"), Address.of(tmp_path), [])
    assert sorted(reads.values()) == [1, 1], "nothing was left to make"


def test_a_sweep(compose: Compose, tmp_path: Path, reads: Counter[str]) -> None:
    points = [SweepPoint([change], compose(*SMALL, change)) for change in ("sampling.steps=1", "sampling.steps=2")]
    outcomes = run_sweep(points, Address.of(tmp_path))
    assert [outcome.status for outcome in outcomes] == ["complete", "complete"]
    assert all((outcome.address.local_path() / "report.html").exists() for outcome in outcomes)
    assert list(reads.values()) == [1, 1]
