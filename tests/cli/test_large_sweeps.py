"""Sweeps of very many points: only rank 0 composes them, and only once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from fluxexp.address import Address
from fluxexp.errors import ConfigError, Problem, StorageError
from fluxexp.experiment import Outcome, SweepPoint
from fluxexp.experiment import run as run_module

MAIN = import_module("fluxexp.cli.main")  # the package has a function of this name
SWEEP = ("-m", "model=fake", "dataset.limit=2", "tracking=disabled", "sampling.seed=range(100)")


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The points of each sweep that would be run, and the name of each full composition by Hydra."""
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    load = ConfigLoaderImpl.load_configuration

    def load_configuration(*args: Any, **named: Any) -> Any:
        seen.append("composition")
        return load(*args, **named)

    def run_sweep(points: Sequence[SweepPoint], *_: Any, **__: Any) -> list[Outcome]:
        seen.append(points)
        return [Outcome.failed(None, str(p.error)) if p.error else Outcome(None) for p in points]  # type: ignore[arg-type]

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", load_configuration)
    monkeypatch.setattr(MAIN, "run_sweep", run_sweep)
    return seen


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Set what a launcher of two processes sets."""
    variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 29501}
    for name, value in {**variables, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))


def run(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], rank: int) -> Any:
    as_rank(monkeypatch, rank)
    monkeypatch.setattr(sys, "argv", ["fluxexp", *arguments])
    with pytest.raises(SystemExit) as ended:
        MAIN._main()
    return ended.value.code


def test_rank_0_composes_a_sweep_once(monkeypatch: pytest.MonkeyPatch, composed: list[Any]) -> None:
    assert run(monkeypatch, SWEEP, rank=0) == 0
    (points,) = (found for found in composed if found != "composition")
    assert [point.config.sampling.seed for point in points] == list(range(100))
    assert composed.count("composition") < 10, "values are set in one composed config"


def test_another_rank_composes_one_config(monkeypatch: pytest.MonkeyPatch, composed: list[Any]) -> None:
    assert run(monkeypatch, SWEEP, rank=1) == 0
    (points,) = (found for found in composed if found != "composition")
    assert len(points) == 1, "it receives the points from rank 0"
    assert composed.count("composition") < 10


def test_a_wrong_value_of_a_large_sweep_is_answered_before_any_point_runs(
    monkeypatch: pytest.MonkeyPatch, composed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*SWEEP, "sampling.steps=4,-1")
    assert run(monkeypatch, arguments, rank=0) == 2
    assert "sampling.steps" in capsys.readouterr().err
    assert all(found == "composition" for found in composed)


def test_the_other_ranks_are_released_if_no_point_can_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compose: Callable[..., Any]
) -> None:
    """Rank 0 publishes the error that the other ranks wait for."""
    opened: list[Any] = []

    class Session:
        def run(self) -> NoReturn:
            opened.append("run")
            raise StorageError("no point of the sweep can be run")

    as_rank(monkeypatch, 0)
    monkeypatch.setattr(run_module, "_session", lambda *_: Session())
    error = ConfigError(Problem("sampling.steps", "is wrong"))
    (outcome,) = run_module.run_sweep([SweepPoint((), None, error)], Address.of(tmp_path), compose("model=fake"))
    assert opened == ["run"]
    assert outcome.error == str(error)
