"""Rank 0 reads each line of a manifest once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
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
    """How many lines of each manifest stream were read."""
    counted: Counter[str] = Counter()
    read = LocalStore.read_records

    def read_records(self: LocalStore, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        for record in read(self, stream, position):
            counted[f"{self.path.name}/{stream}"] += 1
            yield record

    monkeypatch.setattr(LocalStore, "read_records", read_records)
    return counted


def test_a_run_with_scores_report_and_contact_sheet(compose: Compose, tmp_path: Path, reads: Counter[str]) -> None:
    first = run_experiment(compose(*SMALL), Address.of(tmp_path), [])
    assert (first.address.local_path() / "contact_sheet.png").exists()
    assert first.summary["scoring"]["num_scored"] == 2
    assert list(reads.values()) == [2], "both lines of the new stream, after the work"
    reads.clear()
    run_experiment(compose(*SMALL, "dataset.limit=3"), Address.of(tmp_path), [])
    assert sorted(reads.values()) == [1, 2], "the new line after the work, the old ones before it"
    reads.clear()
    run_experiment(compose(*SMALL, "dataset.limit=3"), Address.of(tmp_path), [])
    assert sorted(reads.values()) == [1, 2], "nothing was left to make"


def test_a_sweep(compose: Compose, tmp_path: Path, reads: Counter[str]) -> None:
    points = [SweepPoint([change], compose(*SMALL, change)) for change in ("sampling.steps=1", "sampling.steps=2")]
    outcomes = run_sweep(points, Address.of(tmp_path))
    assert [outcome.status for outcome in outcomes] == ["complete", "complete"]
    assert all((outcome.address.local_path() / "report.html").exists() for outcome in outcomes)
    assert list(reads.values()) == [2, 2]
