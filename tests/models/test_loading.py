from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fluxexp.config import RunConfig
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import NO_FILES, FluxModelConfig
from fluxexp.errors import ModelError
from fluxexp.models.loading.model_loader import load_model
from fluxexp.models.loading.pipeline_loader import load_flux
from tests.models.conftest import NO_OPTIMIZATION, Load, fill_inputs, point, run

CPU = torch.device("cpu")


def config(path: Path) -> FluxModelConfig:
    return FluxModelConfig(
        family="flux_fill",
        name="mine",
        path=str(path),
        base=None,
        files=NO_FILES,
        revision=None,
        variant=None,
        sha256=None,
        weights="pretrained",
        layout=None,
        dtype="float32",
        resolution=128,
    )


def copy_of_tiny_fill(path: Path) -> Path:
    directory = model_directory("embedded:tiny_fill")
    assert directory
    return shutil.copytree(directory, path)


def test_a_model_directory_loads_and_gives_the_same_latents(load: Load, tmp_path: Path) -> None:
    model = load_flux(config(copy_of_tiny_fill(tmp_path / "m")), NO_OPTIMIZATION, CPU)
    inputs, points = fill_inputs(), [point()] * 3
    assert torch.equal(run(model, inputs, points), run(load("tiny_fill"), inputs, points))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = copy_of_tiny_fill(tmp_path / "m")
    weights = path / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_flux(config(path), NO_OPTIMIZATION, CPU)


def test_the_error_names_a_damaged_model(tmp_path: Path) -> None:
    path = copy_of_tiny_fill(tmp_path / "m")
    (path / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"model.path=.*cannot be loaded"):
        load_flux(config(path), NO_OPTIMIZATION, CPU)


def test_optimizations_are_applied_in_order_and_named(load: Load) -> None:
    asked = replace(NO_OPTIMIZATION, vae_tiling=True, attention_backend="native")
    model = load("tiny_fill", optimization=asked)
    assert model.applied_optimizations == ["attention_backend=native", "vae_tiling=128"]
    assert model.vae.use_tiling


def test_an_optimization_that_cannot_be_applied_is_an_error(load: Load) -> None:
    with pytest.raises(ModelError, match=r"optimization\.attention_backend cannot be applied"):
        load("tiny_fill", optimization=replace(NO_OPTIMIZATION, attention_backend="warp_drive"))


def test_a_model_is_freed_before_the_next_is_loaded(compose: Callable[..., RunConfig]) -> None:
    """The parts of a model refer to each other, so only the garbage collector frees them."""
    options = ("optimization=none", "optimization.hoist_constants=true")
    model: Any = load_model(compose("model=tiny_fill", *options), CPU, 0)
    transformer = weakref.ref(model.transformer)
    del model
    load_model(compose("model=tiny_dev", *options), CPU, 0)
    assert transformer() is None
