"""Redux gives the bits of the library's two pipelines: `FluxPriorReduxPipeline`, and then text to image or Fill."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxPriorReduxPipeline

from fluxexp.config.families import FAMILIES
from fluxexp.config.model_layouts import LAYOUTS, ModelLayout
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import OptimizationConfig, StepCacheConfig
from fluxexp.models.base import Decoded, Job, ModelInput, PromptPair, clip_text, t5_text
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.offloading import offload
from fluxexp.models.loading.picture_encoders import draw_redux, redux_without_weights
from fluxexp.models.loading.random_weights import random_pipeline
from fluxexp.models.offload.offload_plan import OffloadPlan
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import Point, ReduxUse
from tests.models.conftest import SEEDS, generators, inputs_of, point, run
from tests.models.small_layouts import scaled_down, small_pipeline
from tests.models.test_pipelines import (
    DEVICES,
    DTYPES,
    FIRST_BLOCK,
    FUSED,
    GRAPHED,
    GUIDANCES,
    HOISTED,
    STEPS,
    TAYLORSEER,
)
from tests.models.test_weight_streaming import PLANS
from tests.ranks import linked

FAMILY_NAMES = ["flux_redux", "flux_fill_redux"]
USES = [ReduxUse(), ReduxUse(True, 0.7, 1.3), ReduxUse(True, 1.9, 0.0)]


def redux_model(
    family: str,
    dtype: str = "float32",
    optimization: OptimizationConfig = NONE,
    device: str = "cpu",
    layout: ModelLayout | None = None,
) -> tuple[Flux1Model, Any]:
    """A small model of random weights, and the library's pipeline that makes its prompts."""
    declared, place = FAMILIES[family], torch.device(device)
    if layout is None:
        layout, pipeline = scaled_down(LAYOUTS[declared.layouts[0]]), small_pipeline(family, device, dtype)
    else:
        pipeline = random_pipeline(layout, place, getattr(torch, dtype), family=declared)
        pipeline.set_progress_bar_config(disable=True)
    prior = redux_without_weights(layout, getattr(torch, dtype))
    draw_redux(prior, place, place)
    model = Flux1Model(pipeline, place, declared, prior)
    apply_optimizations(model, optimization, 64)
    return model, prior


def with_text(model: Flux1Model, prior: Any) -> Any:
    """The library's first pipeline with text encoders. In it, T5 always reads 512 tokens."""
    pipeline = model.pipeline
    return FluxPriorReduxPipeline(
        prior.image_encoder,
        prior.feature_extractor,
        prior.image_embedder,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.text_encoder_2,
        pipeline.tokenizer_2,
    )


def theirs_of(
    model: Flux1Model, prior: Any, items: Sequence[ModelInput], asked: Sequence[Point], prompted: bool = True
) -> list[torch.Tensor]:
    """The library's latents of each item at its point. Its first pipeline makes the prompts one by one.

    Its second pipeline has one guidance for a batch, so each point needs a call of its own.
    """
    embeds = []
    for item, own in zip(items, asked, strict=True):
        number = len(item.references)
        texts = {"prompt": clip_text(item.prompt), "prompt_2": t5_text(item.prompt)} if prompted else {}
        embeds.append(
            prior(
                image=list(item.references),
                **{name: [text] * number for name, text in texts.items()},
                prompt_embeds_scale=[own.redux.scale] * number,
                pooled_prompt_embeds_scale=[own.redux.pooled_scale] * number,
            )
        )
    pictures = {"image": [item.image for item in items], "mask_image": [item.mask for item in items]}
    latents = []
    for index, own in enumerate(asked):
        batch: torch.Tensor = model.pipeline(
            prompt_embeds=torch.cat([each.prompt_embeds for each in embeds]),
            pooled_prompt_embeds=torch.cat([each.pooled_prompt_embeds for each in embeds]),
            **({} if items[0].mask is None else pictures),
            height=64,
            width=96,
            num_inference_steps=STEPS,
            guidance_scale=own.guidance,
            generator=generators(),
            output_type="latent",
        ).images
        latents.append(batch[index])
    return latents


def points(steps: int = STEPS, *, reads_prompt: bool = True) -> list[Point]:
    """Points of mixed guidance and factors."""
    uses = [replace(use, reads_prompt=reads_prompt) for use in USES]
    return [replace(point(steps, each), redux=use) for each, use in zip(GUIDANCES, uses, strict=True)]


def assert_same_bits(model: Flux1Model, prior: Any, items: Sequence[ModelInput], prompted: bool = True) -> None:
    """Our batch of mixed guidance and factors has, for each of its points, the latents of the library."""
    asked = points(reads_prompt=prompted)
    items = [replace(item, reads_prompt=prompted) for item in items]
    conditionings = [model.condition([item], 512)[0] for item in items]  # one by one, as the library does it
    jobs = [Job(each, own, seed) for each, own, seed in zip(conditionings, asked, SEEDS, strict=True)]
    ours = model.denoise(jobs).packed
    assert torch.isfinite(ours).all()
    for mine, theirs in zip(ours, theirs_of(model, prior, items, asked, prompted), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimization", [NONE, HOISTED], ids=["eager", "hoisted"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_latents_are_those_of_the_library(
    family: str, optimization: OptimizationConfig, dtype: str, device: str
) -> None:
    model, prior = redux_model(family, dtype, optimization, device)
    items = inputs_of(family)
    items[1] = replace(items[1], prompt=PromptPair("a cat", "a photo of a cat"))
    assert_same_bits(model, with_text(model, prior), items)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_references_are_added_up_as_in_the_library(dtype: str) -> None:
    model, prior = redux_model("flux_redux", dtype)
    items = inputs_of("flux_redux")
    items[0] = replace(items[0], references=tuple(item.references[0] for item in items))
    items[2] = replace(items[2], references=(items[1].references[0], items[0].references[2]))
    assert_same_bits(model, with_text(model, prior), items)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_prompt_its_tokens_are_zeros_as_in_the_library(dtype: str) -> None:
    """The library has the widths of FLUX.1 in its code."""
    small = scaled_down(LAYOUTS["flux_dev"])
    layout = replace(
        small,
        transformer={**small.transformer, "joint_attention_dim": 4096, "pooled_projection_dim": 768},
        text_tokens=512,
    )
    model, prior = redux_model("flux_redux", dtype, layout=layout)
    assert_same_bits(model, prior, inputs_of("flux_redux"), prompted=False)


def test_a_batch_may_mix_prompts_that_are_read_and_not_read() -> None:
    model, _ = redux_model("flux_redux")
    items = inputs_of("flux_redux")
    unread = [replace(item, reads_prompt=False) for item in items]
    asked = [point()] * 3
    read, mixed, nothing = (
        run(model, items, asked),
        run(model, [items[0], *unread[1:]], asked),
        run(model, unread, asked),
    )
    assert torch.equal(mixed[1:], nothing[1:])
    assert float((mixed[0] - read[0]).norm() / read[0].norm()) < 1e-5
    assert not torch.equal(read[1], nothing[1])


def test_tokens_of_a_picture_count_as_text() -> None:
    model, _ = redux_model("flux_redux")
    assert model.tokens(64, 96, 32) == 4 * 6 + 32 + 16
    assert FAMILIES["flux_redux"].tokens(1024 * 1024) == 4096 + 512 + 729


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_ranks_give_the_latents_of_one(family: str, kind: Any) -> None:
    items, asked = inputs_of(family, 2), points(2)[:2]
    models = [redux_model(family, optimization=HOISTED)[0] for _ in range(2)]
    alone = run(redux_model(family, optimization=HOISTED)[0], items, asked)

    def one(collectives: Collectives) -> torch.Tensor:
        model = models[collectives.rank]
        model.enable_context_parallel(collectives, kind)
        return run(model, items, asked)

    first, second = linked(2, one)
    assert float((first - alone).norm() / alone.norm()) < 1e-5
    assert torch.equal(first, second)


@pytest.mark.parametrize("cache", [TAYLORSEER, FIRST_BLOCK], ids=["planned", "by content"])
def test_step_caches_skip_blocks(cache: StepCacheConfig) -> None:
    model, _ = redux_model("flux_redux", optimization=replace(HOISTED, step_cache=cache))
    conditionings = model.condition(inputs_of("flux_redux"), None)
    latents = model.denoise([Job(each, point(6), 7) for each in conditionings])
    assert torch.isfinite(latents.packed).all()
    assert all(steps < 6 for steps in model.computed_steps(latents))


def test_the_start_of_a_batch_can_be_sent_to_other_ranks() -> None:
    model, _ = redux_model("flux_redux", optimization=HOISTED)
    jobs = [
        Job(each, own, 7) for each, own in zip(model.condition(inputs_of("flux_redux"), None), points(), strict=True)
    ]
    sent = pickle.loads(pickle.dumps(model.begin(jobs)))
    assert torch.equal(model.integrate(sent).packed, model.denoise(jobs).packed)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_fused_blocks_stay_within_the_tolerance(family: str, dtype: str, tolerance: float) -> None:
    plain, fused = redux_model(family, dtype)[0], redux_model(family, dtype, FUSED)[0]
    assert "fused_kernels" in fused.applied_optimizations
    ours, theirs = run(fused, inputs_of(family), points()).float(), run(plain, inputs_of(family), points()).float()
    assert float((ours - theirs).norm() / theirs.norm()) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_lossless_optimizations_on_a_gpu_stay_within_the_tolerance(family: str) -> None:
    plain, fast = redux_model(family, "bfloat16", device="cuda")[0], redux_model(family, "bfloat16", GRAPHED, "cuda")[0]
    assert not fast.skipped_optimizations
    theirs = run(plain, inputs_of(family), points()).float()
    for _ in range(2):  # the second time, the step is replayed
        ours = run(fast, inputs_of(family), points()).float()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_stage_waits_for_the_device() -> None:
    model, _ = redux_model("flux_redux", "bfloat16", GRAPHED, "cuda")

    def make() -> Decoded:
        conditionings = model.condition(inputs_of("flux_redux"), None)
        return model.decode(model.denoise([Job(c, p, 7) for c, p in zip(conditionings, points(), strict=True)]))

    expected = make().images()
    make().images()  # the second time, the step is captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoded = make()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert decoded.images() == expected


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_offloading_keeps_the_bits(plan: OffloadPlan) -> None:
    model, _ = redux_model("flux_redux", "bfloat16", FUSED)
    expected = run(model, inputs_of("flux_redux"), points())
    streams, denoiser = offload(model, plan), model.denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    model.denoiser = HoistedDenoiser(model.transformer, replace(denoiser.options, streams=streams))
    for _ in range(2):
        assert torch.equal(run(model, inputs_of("flux_redux"), points()), expected)
