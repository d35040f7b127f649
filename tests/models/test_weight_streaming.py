"""Weights are loaded and unloaded, and the results keep their bits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxexp.config.optimization_catalog import NONE
from fluxexp.errors import ModelError
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.offloading import offload, weight_bytes
from fluxexp.models.offload.offload_plan import OffloadPlan, spread_evenly
from fluxexp.models.offload.weight_streaming import Slots, Weights
from fluxexp.records import LoraUse
from tests import lora_files
from tests.models.conftest import PROMPTS, Load, fill_inputs, point, run

HOISTED = replace(NONE, hoist_constants=True)
FUSED = replace(HOISTED, fused_kernels=True, modulation_table=True, attention_backend="fastest")
PLANS = {
    "text_encoders": OffloadPlan("text_encoders", 0),
    "model": OffloadPlan("model", 0),
    "model, VAE alone": OffloadPlan("model", 0, vae_alone=True),
    "group": OffloadPlan("group", 0, num_slots=2, num_total=(3, 4)),
    "group, some stay": OffloadPlan("group", 0, num_resident=(2, 1), num_total=(3, 4), num_slots=2),
    "sequential": OffloadPlan("sequential", 0, num_slots=1, num_total=(3, 4)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def pixels(model: Flux1Model) -> torch.Tensor:
    return torch.stack([run(model, fill_inputs(), [point(3)] * 3) for _ in range(2)])


@pytest.mark.parametrize("asked", [HOISTED, FUSED, replace(FUSED, fused_vae=True, fp8_linears=True)], ids=range(3))
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_offloading_keeps_the_bits(load: Load, asked: object, plan: OffloadPlan) -> None:
    model = load("tiny_fill", "bfloat16", asked)
    expected = pixels(model)
    streams, denoiser = offload(model, plan), model.denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    model.denoiser = HoistedDenoiser(model.transformer, replace(denoiser.options, streams=streams))
    assert torch.equal(pixels(model), expected)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_lora_reaches_streamed_weights(load: Load, plan: OffloadPlan, tmp_path: Path) -> None:
    """And the loaded weights come back after it. It changes CLIP, too."""
    model, resident = (load("tiny_fill", "bfloat16", FUSED) for _ in range(2))
    uses = (LoraUse(lora_files.kohya(tmp_path / "a.safetensors", text=True), 1.0),)
    streams, denoiser = offload(model, plan), model.denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    model.denoiser = HoistedDenoiser(model.transformer, replace(denoiser.options, streams=streams))
    with_lora = [replace(item, lora=uses) for item in fill_inputs()]
    plain, changed = point(3), replace(point(3), lora=uses)
    for inputs, wanted in ((fill_inputs(), plain), (with_lora, changed), (fill_inputs(), plain), (with_lora, changed)):
        assert torch.equal(run(model, inputs, [wanted] * 3), run(resident, inputs, [wanted] * 3))


def test_a_part_is_loaded_for_its_stage_and_evicted_for_others(load: Load) -> None:
    model = load("tiny_fill", optimization=HOISTED)
    offload(model, PLANS["model"])
    weight_streaming = model.weight_streaming
    text, transformer = (weight_streaming._parts[name] for name in ("text", "transformer"))
    loaded = []
    for stage in ("text", "vae", "transformer", "vae", "text"):
        weight_streaming.load_for(stage)
        loaded.append((text.is_loaded, transformer.is_loaded))
    assert loaded == [(True, False), (False, False), (False, True), (False, True), (True, False)]
    assert weight_streaming.streaming_bytes == transformer.num_bytes - text.num_bytes, (
        "loading it frees the text encoders"
    )
    assert transformer.num_bytes >= weight_bytes([model.transformer])


def test_weights_keep_their_memory_format_and_stay_shared() -> None:
    linear, other = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    other.weight = linear.weight
    convolution: Any = torch.nn.Conv2d(4, 6, 3)
    convolution.to(memory_format=torch.channels_last)
    strides, values = convolution.weight.stride(), convolution.weight.detach().clone()
    weights = Weights([linear, other, convolution], torch.device("cpu"))
    for _ in range(2):
        weights.load()
        assert convolution.weight.stride() == strides
        assert torch.equal(convolution.weight, values)
        assert other.weight is linear.weight
        weights.unload()
    assert torch.equal(convolution.weight, values)


def test_slots_hold_the_weights_that_were_loaded_last() -> None:
    layers = [torch.nn.Linear(4, 4) for _ in range(3)]
    weights = [Weights([layer], torch.device("cpu")) for layer in layers]
    slots = Slots(2, torch.device("cpu"))
    slots.reserve(weights)
    for each in weights:
        slots.begin(each)
        slots.end(each)
    assert [each.is_loaded for each in weights] == [False, True, True]


def test_weights_can_be_loaded_after_an_out_of_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights([torch.nn.Linear(4, 4)], torch.device("cpu"))
    slots = Slots(1, torch.device("cpu"))
    slots.reserve([weights])

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            slots.begin(weights)
    slots.begin(weights)
    assert weights.is_loaded


@pytest.mark.parametrize(("total", "number"), [(57, 0), (57, 1), (57, 30), (57, 57)])
def test_resident_blocks_are_spread_evenly(total: int, number: int) -> None:
    indices = sorted(spread_evenly(total, number))
    assert len(indices) == number
    gaps = [after - before for before, after in pairwise(indices)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert not indices or indices[0] == 0


def test_a_cpu_offloads_nothing_and_says_so(load: Load) -> None:
    model = load("tiny_fill", optimization=replace(NONE, offload="model"))
    assert model.skipped_optimizations == {"offload": "there is no GPU"}


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["text_encoders", "model", "group", "sequential"])
def test_a_gpu_gives_the_same_bits(load: Load, policy: Any) -> None:
    asked = replace(FUSED, fused_vae=True, attention_backend=None)
    expected = pixels(load("tiny_fill", "bfloat16", asked, device="cuda"))
    model = load("tiny_fill", "bfloat16", replace(asked, offload=policy), device="cuda")
    assert any(words.startswith(f"offload={policy}") for words in model.applied_optimizations)
    for _ in range(2):
        assert torch.equal(pixels(model), expected)
    encoders = {parameter.device.type for parameter in model.pipeline.text_encoder.parameters()}
    assert encoders == {"cpu"}


@pytest.mark.gpu
def test_steps_are_captured_only_if_the_transformer_stays(load: Load) -> None:
    asked = replace(FUSED, cuda_graph=True)
    policies: list[tuple[Any, bool]] = [("text_encoders", True), ("group", True), ("sequential", False)]
    for policy, is_captured in policies:
        model = load("tiny_fill", "bfloat16", replace(asked, offload=policy), device="cuda")
        assert ("cuda_graph" in model.applied_optimizations) == is_captured
        assert ("cuda_graph" in model.skipped_optimizations) != is_captured


@pytest.mark.gpu
def test_a_model_that_does_not_fit_says_what_to_do(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.models.loading.pipeline_loader.free_memory_bytes", lambda _: 1 << 20)
    with pytest.raises(ModelError, match=r"optimization\.offload=auto: the model needs"):
        load("tiny_fill", optimization=replace(HOISTED, offload="auto"), device="cuda")


def test_later_prompts_are_encoded_while_the_text_encoders_are_loaded(load: Load) -> None:
    model = load("tiny_fill", optimization=replace(NONE, text_cache=True))
    assert not model.streams_text_encoders(PROMPTS, None), "the text encoders are always on the device"
    offload(model, PLANS["text_encoders"])
    assert model.streams_text_encoders(PROMPTS, None)
    model.encode_prompts(PROMPTS, None)
    assert not model.streams_text_encoders(PROMPTS, None)
