from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from fluxexp.config.families import FAMILIES
from fluxexp.config.model_paths import model_directory
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import NO_FILES, FluxModelConfig, OptimizationConfig
from fluxexp.models.base import Job, ModelInput
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.loading import pipeline_loader
from fluxexp.models.loading.pipeline_loader import load_flux
from fluxexp.records import Point

PROMPTS = ["a large red star", "a striped blue ring on grey", "x"]
SEEDS = [11, 12, 13]

NO_OPTIMIZATION = NONE

Load = Callable[..., Flux1Model]

_LOADING = threading.Lock()
_LOAD_PIPELINE = pipeline_loader._load_pipeline
_PIPELINES: dict[Hashable, DiffusionPipeline] = {}
"""Pipelines of embedded models on the host, by config. Nobody changes them."""


def load_tiny(
    name: str,
    dtype: str = "float32",
    optimization: OptimizationConfig = NO_OPTIMIZATION,
    device: str = "cpu",
    path: str | None = None,
    family: str | None = None,
) -> Flux1Model:
    """Load an embedded model, e.g. `load_tiny("tiny_fill", dtype="bfloat16")`, or the model at `path`.

    Embedded weights are read once, and copied for each model: that takes less than half of the time.
    """
    config = FluxModelConfig(
        family=family or ("flux_fill" if name == "tiny_fill" else "flux"),
        name=name,
        path=path or f"embedded:{name}",
        base=None,
        files=NO_FILES,
        revision=None,
        variant=None,
        sha256=None,
        weights="pretrained",
        layout=None,
        dtype=dtype,  # type: ignore[arg-type]
        resolution=128,
    )
    if path is not None:
        return load_flux(config, optimization, torch.device(device))
    with _LOADING, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_loader, "_load_pipeline", _copied_pipeline)
        return load_flux(config, optimization, torch.device(device))


def library_pipeline(pipeline_class: Any, name: str, dtype: str = "float32", device: str = "cpu") -> Any:
    """The library's own pipeline with the weights of an embedded model: a new copy, which the caller may change."""
    return copy.deepcopy(_read_library_pipeline(pipeline_class, name, dtype)).to(device)


@cache
def _read_library_pipeline(pipeline_class: Any, name: str, dtype: str) -> Any:
    pipeline = pipeline_class.from_pretrained(model_directory(f"embedded:{name}"), dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _copied_pipeline(
    config: FluxModelConfig, pipeline_class: Any, dtype: torch.dtype, *, keeps_fp8: bool
) -> DiffusionPipeline:
    known = (repr(config), pipeline_class, keeps_fp8)
    if known not in _PIPELINES:
        _PIPELINES[known] = _LOAD_PIPELINE(config, pipeline_class, dtype, keeps_fp8=keeps_fp8)
    return copy.deepcopy(_PIPELINES[known])


@pytest.fixture(scope="session")
def load() -> Load:
    return load_tiny


def point(steps: int = 3, guidance: float = 4.0, strength: float = 1.0, scheduler: str = "flow_match_euler") -> Point:
    return Point(
        scheduler=scheduler,
        shift=None,
        steps=steps,
        guidance=guidance,
        seed=0,
        strength=strength,
        height=None,
        width=None,
        max_sequence_length=None,
    )


def fill_inputs(height: int = 64, width: int = 96, number: int = 3) -> list[ModelInput]:
    random = np.random.default_rng(0)
    inputs = []
    for index in range(number):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        mask = np.zeros((height, width), np.uint8)
        mask[10 + 5 * index : 40, 20:70] = 255
        inputs.append(
            ModelInput(prompt=PROMPTS[index], height=height, width=width, image=image, mask=Image.fromarray(mask))
        )
    return inputs


def inputs_of(family: str, number: int = 3) -> list[ModelInput]:
    """Inputs with what the family requires, and nothing else."""
    random, items = np.random.default_rng(1), fill_inputs(number=number)

    def picture() -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (64, 96, 3), dtype=np.uint8))

    everything = [replace(item, control_image=picture(), references=(picture(),)) for item in items]
    nothing: dict[str, Any] = {"image": None, "mask": None, "control_image": None, "references": ()}
    left_out = {name: value for name, value in nothing.items() if name not in FAMILIES[family].required}
    return [replace(item, **left_out) for item in everything]


def text_inputs(height: int = 64, width: int = 96) -> list[ModelInput]:
    return [ModelInput(prompt=prompt, height=height, width=width) for prompt in PROMPTS]


def run(model: Flux1Model, inputs: Sequence[ModelInput], points: Sequence[Point]) -> torch.Tensor:
    """Condition and denoise one batch. Returns its packed latents."""
    conditionings = model.condition(inputs, None)
    jobs = [Job(c, p, seed) for c, p, seed in zip(conditionings, points, SEEDS, strict=False)]
    return model.denoise(jobs).packed


def generators() -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
