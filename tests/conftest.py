"""Fixtures and settings of all tests: no network, no W&B account, a separate cache, and composed configs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from fluxexp.config import RunConfig
from tests.program import Program

# Tests run in parallel, so more threads per test would only compete. torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests assert no timings: a busy machine must not fail a property test.
settings.register_profile("fluxexp", deadline=None)
settings.load_profile("fluxexp")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without the garbage collector: see `fluxexp.imports`."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU if there is none, with the reason."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


Compose = Callable[..., RunConfig]


@cache
def _composed(*overrides: str) -> RunConfig:
    """To compose takes a tenth of a second, and many tests compare with the same config."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from fluxexp.cli.compose import to_run_config
    from fluxexp.cli.location import config_directory

    with initialize_config_dir(version_base="1.3", config_dir=str(config_directory())):
        return to_run_config(hydra_compose("config", overrides=list(overrides)))


@pytest.fixture
def compose() -> Compose:
    """`compose("sampling.steps=4", ...)`: the RunConfig of these overrides, settled for a CPU as rank 0 does it."""
    from fluxexp.config.optimization_kinds import settled

    return lambda *overrides: settled(_composed(*overrides), has_gpu=False)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Starts fluxexp in an empty directory."""
    return Program(tmp_path)
