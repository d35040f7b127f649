from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig, schema
from fluxexp.data import Dataset, open_dataset
from fluxexp.errors import ConfigError, Problem
from fluxexp.experiment import SweepPoint, planner, run_sweep

Compose = Callable[..., RunConfig]


def test_a_dataset_that_several_points_share_is_opened_once(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[schema.DatasetConfig] = []

    def counted(config: schema.DatasetConfig) -> Dataset:
        opened.append(config)
        return open_dataset(config)

    monkeypatch.setattr(planner, "open_dataset", counted)
    changes = ["sampling.steps=1", "sampling.steps=2", "dataset.seed=1"]
    points = [SweepPoint([change], compose("debug=plan", change)) for change in changes]
    run_sweep(points, Address.of(tmp_path))
    assert len(opened) == 2
    assert capsys.readouterr().out.count("of which 0 are done") == 3


def test_without_a_valid_point_no_session_starts(tmp_path: Path) -> None:
    error = ConfigError(Problem("sampling.steps", "must be at least 1", 0))
    outcomes = run_sweep([SweepPoint(["sampling.steps=0"], None, error)], Address.of(tmp_path))
    assert [(outcome.status, "must be at least 1" in str(outcome.error)) for outcome in outcomes] == [("failed", True)]
    assert not list(tmp_path.iterdir())
