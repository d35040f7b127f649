"""The full path of each family on a GPU: fused kernels and CUDA graphs, with second passes, LoRAs and streamed weights.

The models have random weights, two blocks of each kind, and heads of 128 features as at full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES
from fluxexp.config.model_layouts import LAYOUTS, ModelLayout
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import NO_FILES, ControlNetConfig, FluxModelConfig, OptimizationConfig
from fluxexp.data import place
from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.kernels.host_memory import HostCopies, Uploads
from fluxexp.models.loading import pipeline_loader, random_weights
from fluxexp.models.lora import original_weights
from fluxexp.records import LoraUse, Sample
from tests import lora_files
from tests.models.conftest import SEEDS, inputs_of, point, run
from tests.models.small_layouts import scaled_down

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
STEPS = 4
GUIDANCES = [1.0, 4.0, 30.0]
SCALES = [1.7, 3.3, 6.0]
"""Of true CFG."""
NEGATIVES = ["a blue square", "", "blurry"]
FUSED = replace(NONE, hoist_constants=True, modulation_table=True, fused_kernels=True, attention_backend="fastest")
LOSSLESS = replace(FUSED, cuda_graph=True, fused_vae=True)
FP8 = replace(LOSSLESS, fp8_linears=True)
WITH_NEGATIVES = [name for name in PIPELINE_FAMILIES if FAMILIES[name].takes_negative_prompt]
RANDOM_CONTROLNET = ControlNetConfig(path="", revision=None, layout="plain")
TOLERANCE = 1e-2
"""Of the lossless class: relative distance of latents in bfloat16."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `model.layout` name layouts with heads of full size, and let blocks matter for their result."""
    wide = {name: _wide(layout) for name, layout in LAYOUTS.items()}
    monkeypatch.setattr(pipeline_loader, "LAYOUTS", wide)
    monkeypatch.setattr(random_weights, "_STD", 0.05)  # with smaller weights, a prompt changes less than rounding does


def _wide(layout: ModelLayout) -> ModelLayout:
    blocks = {"num_layers": 2, "num_single_layers": 2}
    heads = {"attention_head_dim": 128, "num_attention_heads": 2, "axes_dims_rope": (16, 56, 56)}
    small = scaled_down(layout)
    return replace(small, transformer={**small.transformer, **blocks, **heads})


def model_of(family: str, optimization: OptimizationConfig, *, takes_loras: bool = False) -> Flux1Model:
    config = FluxModelConfig(
        family=family,
        name=family,
        path="",
        base=None,
        files=NO_FILES,
        revision=None,
        variant=None,
        sha256=None,
        weights="random",
        layout=FAMILIES[family].layouts[0],
        dtype="bfloat16",
        resolution=128,
        controlnet=RANDOM_CONTROLNET if FAMILIES[family].has_controlnet else None,
    )
    model = pipeline_loader.load_flux(config, optimization, DEVICE, takes_loras=takes_loras)
    assert not model.skipped_optimizations
    return model


def made(model: Flux1Model, items: Sequence[ModelInput], *, lora: tuple[LoraUse, ...] = ()) -> torch.Tensor:
    """Latents of a batch of mixed guidance, with a second pass if the inputs have negative prompts."""
    has_second = items[0].negative_prompt is not None
    points = [
        replace(point(STEPS, guidance, 0.6), lora=lora, true_cfg_scale=scale if has_second else 1.0)
        for guidance, scale in zip(GUIDANCES, SCALES, strict=True)
    ]
    return run(model, [replace(item, lora=lora) for item in items], points)


def with_negatives(items: Sequence[ModelInput]) -> list[ModelInput]:
    return [replace(item, negative_prompt=text) for item, text in zip(items, NEGATIVES, strict=True)]


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative to the norm of `theirs`."""
    assert torch.isfinite(ours).all()
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize("family", PIPELINE_FAMILIES)
def test_captured_steps_of_every_family_stay_near_the_library(family: str) -> None:
    """In eager mode the model has the library's bits (`test_pipelines.py`, `test_bit_identity.py`)."""
    items = inputs_of(family)
    plain, model = model_of(family, NONE), model_of(family, LOSSLESS)
    expected = made(plain, items)
    first, captured, replayed = (made(model, items) for _ in range(3))
    assert distance(first, expected) < TOLERANCE
    assert distance(captured, expected) < TOLERANCE
    assert torch.equal(replayed, captured)
    other = made(plain, [replace(item, prompt="a blue ring") for item in items])
    assert distance(other, expected) > 4 * TOLERANCE, "otherwise the test shows nothing"


@pytest.mark.parametrize("family", WITH_NEGATIVES)
def test_a_graph_holds_the_rows_of_both_passes(family: str) -> None:
    items, plain = with_negatives(inputs_of(family)), model_of(family, NONE)
    expected, one_pass = made(plain, items), made(plain, inputs_of(family))
    model = model_of(family, LOSSLESS)
    for _ in range(3):
        # A scale of 6 enlarges a rounding difference of both passes.
        assert distance(made(model, items), expected) < 4 * TOLERANCE
    assert distance(expected, one_pass) > 16 * TOLERANCE, "otherwise the test shows nothing"
    captured = GraphedFunction.num_captured
    made(model, inputs_of(family)), made(model, inputs_of(family))
    assert GraphedFunction.num_captured == captured + 1, "one pass is a graph of its own"
    made(model, items)
    assert GraphedFunction.num_captured == captured + 1


@pytest.mark.parametrize("keeps", ["gpu", "host"])
@pytest.mark.parametrize("asked", [LOSSLESS, FP8], ids=["lossless", "fp8"])
def test_swapping_loras_has_the_bits_of_a_fresh_model_and_captures_nothing(
    asked: OptimizationConfig, keeps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keeps == "host":  # as if the GPU had no room for copies of the loaded weights
        monkeypatch.setattr(original_weights, "_FREE_SHARE", 2.0)
    optimization = replace(asked, attention_backend=None)  # the fastest one may differ between two models
    items = inputs_of("flux")
    one, two = loras(tmp_path)
    expected = {}
    for lora in (one, two, ()):
        fresh = model_of("flux", optimization, takes_loras=True)
        expected[lora] = [made(fresh, items, lora=lora) for _ in range(2)][-1]
    assert not torch.equal(expected[one], expected[two])
    assert not torch.equal(expected[one], expected[()])
    model = model_of("flux", optimization, takes_loras=True)
    made(model, items), made(model, items)
    captured, compiled = GraphedFunction.num_captured, dict(counters["stats"])
    for lora in (one, two, one, (), two, ()):
        assert torch.equal(made(model, items, lora=lora), expected[lora])
    assert GraphedFunction.num_captured == captured
    assert dict(counters["stats"]) == compiled


def test_fp8_weights_are_quantized_again_after_a_lora_is_merged(tmp_path: Path) -> None:
    items, (one, _) = inputs_of("flux"), loras(tmp_path)
    plain, model = model_of("flux", NONE), model_of("flux", FP8, takes_loras=True)
    without, merged = made(plain, items), made(plain, items, lora=one)
    assert distance(made(model, items, lora=one), merged) < 0.1 < distance(without, merged)
    assert distance(made(model, items), without) < 0.1


@pytest.mark.parametrize("policy", ["group", "sequential", "model"])
def test_a_lora_reaches_weights_that_are_streamed(policy: Any, tmp_path: Path) -> None:
    items, (one, two) = inputs_of("flux"), loras(tmp_path)
    asked = replace(FUSED, attention_backend=None)
    resident, model = model_of("flux", asked), model_of("flux", replace(asked, offload=policy))
    for lora in (one, two, (), one):
        assert torch.equal(made(model, items, lora=lora), made(resident, items, lora=lora))


@pytest.mark.parametrize("size", [(64, 64), (200, 120), (96, 256)])
def test_kontext_looks_at_a_reference_of_another_size(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    width, height = size
    picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    sample = Sample(key="a", prompt="a red star", references=(picture,))
    placed = place(sample, "fit", 64, 96, 1 << 20, 128)
    item = ModelInput(prompt="a red star", height=64, width=96, references=placed.references)
    items = [item, *inputs_of("flux_kontext")[1:]]
    expected, model = made(model_of("flux_kontext", NONE), items), model_of("flux_kontext", LOSSLESS)
    for _ in range(2):
        assert distance(made(model, items), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["flux_inpaint", "flux_control_inpaint", "flux_kontext_inpaint"])
def test_captured_steps_end_with_the_image_outside_the_mask(family: str) -> None:
    model, items = model_of(family, LOSSLESS), inputs_of(family)
    changed = [replace(item, prompt=f"other {item.prompt}") for item in items]
    for _ in range(2):
        differs = (made(model, items) != made(model, changed)).any(dim=-1)
        assert differs.any(), "inside the mask the prompt matters"
        for each, item in zip(differs, items, strict=True):
            assert item.mask is not None
            left, top, right, bottom = item.mask.getbbox() or (0, 0, 0, 0)
            inside = torch.zeros(4, 6, dtype=torch.bool)
            inside[top // 16 : -(-bottom // 16), left // 16 : -(-right // 16)] = True
            assert not each.cpu()[~inside.flatten()].any(), "outside it the result is the image"


def test_uploads_give_the_values_of_host_copies() -> None:
    """Also if the work on them is slow, so that copies run far ahead of it."""
    tensors = [torch.full((1 << 20,), float(number), device=DEVICE) for number in range(12)]
    copies = HostCopies(tensors, is_pinned=True)
    assert all(copy.is_pinned() for copy in copies.tensors)
    square, found = torch.randn(4096, 4096, device=DEVICE), []
    for _ in range(2):
        for (arrived,) in Uploads(DEVICE).ahead((copy,) for copy in copies.tensors):
            for _ in range(3):
                square = (square @ square).clamp(-1, 1)
            found.append(arrived.clone())
    for number, each in enumerate(found):
        assert bool((each == number % len(tensors)).all())


def loras(folder: Path) -> list[tuple[LoraUse, ...]]:
    """Two LoRAs for the model of family flux, that change all of its linear layers."""
    plain = model_of("flux", NONE)
    paths = [lora_files.peft(folder / f"{seed}.safetensors", plain.transformer, seed) for seed in SEEDS[:2]]
    return [(LoraUse(path, 0.5),) for path in paths]
