"""Runs that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fluxexp.cli.compose import to_run_config
from fluxexp.cli.location import config_directory
from fluxexp.config import RunConfig
from fluxexp.config.optimization_kinds import settled
from tests.gate.made_runs import FAKE, make_run

NUM_SAMPLES = 100


def config_of(*overrides: str) -> RunConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        return settled(to_run_config(compose("config", overrides=[*FAKE, *overrides])), has_gpu=False)


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the same samples and noise, whose images differ. They have no scores: tests must not change them."""
    root = tmp_path_factory.mktemp("gate")
    length = f"dataset.length={NUM_SAMPLES}"
    fast = make_run(config_of(length, "output.format=jpeg", "output.quality=10"), root)
    return fast, make_run(config_of(length), root)
