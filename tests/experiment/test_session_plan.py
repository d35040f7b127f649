"""Ranks agree on a session plan, as threads over one coordinator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig
from fluxexp.data import open_dataset
from fluxexp.errors import MainRankError, RankError, StorageError
from fluxexp.experiment.session_plan import SessionPlan, agree_on_plan
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.topology import Topology
from fluxexp.plan import Plan

Compose = Callable[..., RunConfig]


def topologies(number: int) -> list[Topology]:
    coordinators = LocalCoordinator.group(number)
    return [Topology(rank, number, torch.device("cpu"), coordinators[rank]) for rank in range(number)]


def agree(plans: list[Callable[[RunConfig], Plan]], config: RunConfig) -> list[SessionPlan | Exception]:
    """Each rank's session plan, or the error that it raised."""

    def one(topology: Topology) -> SessionPlan | Exception:
        make_plan = plans[topology.rank]
        plan = make_plan(config) if topology.is_main else None
        with ExitStack() as claim:
            try:
                return agree_on_plan(topology, None if plan is None else [plan], make_plan, claim)
            except (RankError, StorageError) as error:
                return error

    with ThreadPoolExecutor(len(plans)) as pool:
        return list(pool.map(one, topologies(len(plans))))


def planner(root: Path) -> Callable[[RunConfig], Plan]:
    return lambda config: Plan.of(config, open_dataset(config.dataset), Address.of(root))


def test_all_ranks_follow_rank_0(compose: Compose, tmp_path: Path) -> None:
    config = compose("sampling.guidance=3", "dataset.limit=5")
    session_plans = agree([planner(tmp_path)] * 3, config)
    assert all(isinstance(session_plan, SessionPlan) for session_plan in session_plans)
    for session_plan in session_plans:
        assert isinstance(session_plan, SessionPlan)
        (run,) = session_plan.runs
        assert run.plan.config == config
        assert list(run.pending) == [0, 1, 2, 3, 4]
        assert session_plan.session == session_plans[0].session  # type: ignore[union-attr]
        assert session_plan.directory == session_plans[0].directory  # type: ignore[union-attr]


def test_a_rank_with_another_dataset_is_an_error(compose: Compose, tmp_path: Path) -> None:
    def astray(config: RunConfig) -> Plan:
        other = compose("dataset.seed=7")
        return Plan.of(config, open_dataset(other.dataset), Address.of(tmp_path))

    main, other = agree([planner(tmp_path), astray], compose())
    assert isinstance(main, SessionPlan)
    assert isinstance(other, RankError)
    assert "rank 1 sees a different dataset" in str(other)


def test_a_rank_with_other_weights_is_an_error(compose: Compose, tmp_path: Path) -> None:
    """The same path on another machine may hold another model."""
    embedded = model_directory("embedded:tiny_fill")
    assert embedded

    def elsewhere(config: RunConfig) -> Plan:
        copy = shutil.copytree(embedded, tmp_path / "model")
        (copy / "scheduler" / "scheduler_config.json").write_text("{}")
        assert isinstance(config.model, FluxModelConfig)
        own = replace(config, model=replace(config.model, path=str(copy)))
        return Plan.of(own, open_dataset(config.dataset), Address.of(tmp_path))

    main, other = agree([planner(tmp_path), elsewhere], compose())
    assert isinstance(main, SessionPlan)
    assert isinstance(other, RankError)
    assert "rank 1 has other weights than rank 0" in str(other)


def test_if_rank_0_cannot_prepare_the_other_ranks_end_too(compose: Compose, tmp_path: Path) -> None:
    config = compose()
    directory = planner(tmp_path)(config).directory
    directory.local_directory().mkdir()
    (directory.local_directory() / "foreign").touch()
    main, other = agree([planner(tmp_path)] * 2, config)
    assert isinstance(main, StorageError)
    assert isinstance(other, MainRankError)
    assert other.exit_code == StorageError.exit_code, "srun returns the largest code, and 2 is a config error"
