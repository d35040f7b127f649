"""The fastest plan that fits is chosen, whatever the sizes are."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.optimization_catalog import NONE
from fluxexp.errors import ModelError
from fluxexp.models.flux1.offloading import memory_budget, parts_of, weight_bytes, work_for
from fluxexp.models.loading.flux1_line import Flux1Line
from fluxexp.models.loading.random_weights import pipeline_without_weights
from fluxexp.models.offload.offload_plan import GIB, Policy, WeightSizes, WorkingMemory, choose, offload_plans

BYTES = st.integers(0, 30 * GIB)
BLOCKS = st.lists(st.integers(1, GIB), min_size=1, max_size=60)
PARTS = st.builds(
    WeightSizes, text=BYTES, text_blocks=BLOCKS, transformer=BYTES, blocks=BLOCKS, modulations=BLOCKS, vae=BYTES
)
WORK = st.builds(WorkingMemory, encode=BYTES, denoise=BYTES, decode=BYTES)


@given(PARTS, WORK, st.integers(0, 200 * GIB))
def test_the_chosen_plan_fits_and_no_faster_one_does(parts: WeightSizes, work: WorkingMemory, free_bytes: int) -> None:
    plans = list(offload_plans(parts, work))
    fitting = [plan for plan in plans if plan.needed_bytes <= free_bytes]
    if not fitting:
        with pytest.raises(ModelError, match="offload=auto"):
            choose("auto", free_bytes, parts, work)
        return
    chosen = choose("auto", free_bytes, parts, work)
    assert chosen.needed_bytes <= free_bytes
    assert (chosen.policy, chosen.vae_alone) == (fitting[0].policy, fitting[0].vae_alone)
    assert all(0 <= number <= whole for number, whole in zip(chosen.num_resident, chosen.num_total, strict=True))
    for policy in get_args(Policy):
        fits = any(plan.policy == policy for plan in fitting)
        if fits:
            assert choose(policy, free_bytes, parts, work).policy == policy
        else:
            with pytest.raises(ModelError, match=f"optimization.offload={policy}"):
                choose(policy, free_bytes, parts, work)


@given(PARTS, WORK, st.integers(0, 200 * GIB), st.integers(0, 50 * GIB))
def test_more_memory_is_never_slower(parts: WeightSizes, work: WorkingMemory, free_bytes: int, more: int) -> None:
    try:
        less = choose("auto", free_bytes, parts, work)
    except ModelError:
        return
    chosen = choose("auto", free_bytes + more, parts, work)
    policies = get_args(Policy)
    assert policies.index(chosen.policy) <= policies.index(less.policy)
    if chosen.policy == less.policy:
        assert chosen.num_resident >= less.num_resident
        assert chosen.vae_alone <= less.vae_alone


def test_blocks_are_streamed_only_if_the_denoiser_can() -> None:
    parts = WeightSizes(text=GIB, text_blocks=[GIB], transformer=GIB, blocks=[GIB] * 20, modulations=[GIB], vae=GIB)
    work = WorkingMemory(GIB, GIB, GIB)
    assert choose("auto", 10 * GIB, parts, work).policy == "group"
    for asked in ("auto", "group"):
        with pytest.raises(ModelError, match="hoist_constants=true"):
            choose(asked, 10 * GIB, parts, work, can_stream=False)


@cache
def flux_fill() -> Any:
    """FLUX.1-Fill without weights. No test changes it."""
    return pipeline_without_weights(LAYOUTS["flux_fill"], torch.bfloat16)


@pytest.mark.parametrize(
    ("free_gib", "fp8", "text", "policy"),
    [
        (78, False, None, "resident"),
        (35, False, None, "text_encoders"),
        (31, False, None, "group"),
        (22.5, False, None, "group"),
        (22.5, True, None, "group"),
        (22.5, True, "fp8", "text_encoders"),
        (23.5, True, "fp8", "resident"),
        (11, False, None, "group"),
        (7, False, None, "group"),
    ],
)
def test_flux_fill_on_usual_gpus(free_gib: float, fp8: bool, text: Any, policy: str) -> None:
    pipeline = flux_fill()
    asked = replace(NONE, hoist_constants=True, fp8_linears=fp8, text_encoder_weights=text, offload="auto")
    parts = parts_of(pipeline, asked)
    chosen = choose("auto", int(free_gib * GIB), parts, work_for(pipeline, asked, 1024**2))
    assert chosen.policy == policy
    if policy == "group":
        # With 24 GB all blocks stay: steps are captured; only modulations and the text encoder's blocks are streamed.
        assert chosen.moves_transformer == (free_gib < 20)
    if not fp8 and text is None:
        assert parts.all == weight_bytes(pipeline.components.values())


def test_larger_images_take_more_memory() -> None:
    pipeline = flux_fill()
    plain, tiled = (replace(NONE, offload="auto", vae_tiling=tiling) for tiling in (False, True))
    usual, large = (work_for(pipeline, plain, side**2) for side in (1024, 2048))
    assert (large.decode, large.encode) == (4 * usual.decode, 4 * usual.encode)
    assert usual.denoise < large.denoise < 4 * usual.denoise, "text and modulations do not grow with the image"
    assert work_for(pipeline, tiled, 2048**2).decode == work_for(pipeline, tiled, 1024**2).decode


@pytest.mark.parametrize(
    ("free_gib", "pixels", "stays"),
    [(78, 1024**2, True), (78, 512**2, True), (78, 2048**2, True), (23, 512**2, True), (23, 2048**2, False)],
)
def test_a_loaded_model_fits_if_its_weights_need_not_move(free_gib: float, pixels: int, stays: bool) -> None:
    pipeline = flux_fill()
    budget = memory_budget(pipeline, replace(NONE, hoist_constants=True, offload="auto"), int(free_gib * GIB))
    model: Any = SimpleNamespace(memory_budget=budget, offload_plan=budget.plan(1024**2))
    assert Flux1Line().has_room(model, pixels) == stays


def test_images_that_fit_with_no_plan_are_an_error() -> None:
    pipeline = flux_fill()
    budget = memory_budget(pipeline, replace(NONE, hoist_constants=True, offload="auto"), 7 * GIB)
    model: Any = SimpleNamespace(memory_budget=budget, offload_plan=budget.plan(1024**2))
    with pytest.raises(ModelError, match="make smaller images"):
        Flux1Line().has_room(model, 4096**2)
    without_offload: Any = SimpleNamespace(memory_budget=None, offload_plan=None)
    assert Flux1Line().has_room(without_offload, 4096**2)
