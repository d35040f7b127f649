"""True CFG: a second pass with a negative prompt has the library's bits, and goes with every optimization."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig as LibraryFirstBlockCache

from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES
from fluxexp.config.model_layouts import FLUX_DEV, FLUX_SCHNELL
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import (
    ContextKind,
    FirstBlockCacheConfig,
    MagCacheConfig,
    OptimizationConfig,
    StepCacheConfig,
    TaylorSeerCacheConfig,
)
from fluxexp.models.base import Job, ModelInput, PromptPair
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.inside_step import guided
from fluxexp.models.flux1.mag_calibration import measure_ratios
from fluxexp.models.loading.random_weights import random_pipeline
from fluxexp.models.optimizations import change_step_cache
from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.tensor_broadcast import packed, send, unpacked
from fluxexp.records import LoraUse, Point
from tests import lora_files
from tests.models.conftest import (
    PROMPTS,
    SEEDS,
    Load,
    fill_inputs,
    generators,
    inputs_of,
    library_pipeline,
    load_tiny,
    point,
    run,
    text_inputs,
)
from tests.models.small_layouts import scaled_down
from tests.models.test_pipelines import KONTEXT, model_of
from tests.ranks import linked

NEGATIVES = ["a blue square", "", "blurry"]
SECOND = ["a green cross", "x", "two yellow triangles on black"]
SCALES = [1.7, 3.3, 6.0]
GUIDANCES = [1.0, 4.0, 30.0]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HOISTED = replace(NONE, hoist_constants=True)
FUSED = replace(HOISTED, attention_backend="fastest", modulation_table=True, fused_kernels=True)
LOSSLESS = [
    replace(NONE, attention_backend="fastest"),
    replace(HOISTED, attention_backend="fastest"),
    replace(HOISTED, modulation_table=True),
    FUSED,
]
ROUNDING_LUCK = 1.2
"""Two ways to round differ by luck, in either direction."""
FIRST_BLOCK = FirstBlockCacheConfig(
    name="first_block", threshold=0.15, max_consecutive_skips=3, warmup_steps=2, last_steps=1
)
TAYLORSEER = TaylorSeerCacheConfig(name="taylorseer", interval=3, order=1, warmup_steps=2, last_steps=1)
MAGCACHE = MagCacheConfig(
    name="magcache", threshold=0.2, max_consecutive_skips=3, retention_ratio=0.2, last_steps=1, ratios="flux_dev"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def with_negatives(inputs: Sequence[ModelInput]) -> list[ModelInput]:
    return [
        replace(item, mask=None, negative_prompt=negative) for item, negative in zip(inputs, NEGATIVES, strict=False)
    ]


def points(steps: int = 3, strength: float = 1.0, scheduler: str = "flow_match_euler") -> list[Point]:
    return [
        replace(point(steps, guidance, strength, scheduler), true_cfg_scale=scale)
        for guidance, scale in zip(GUIDANCES, SCALES, strict=True)
    ]


def theirs(pipeline: Any, number: int, inputs: Sequence[ModelInput], **more: Any) -> torch.Tensor:
    """The library's latents of image `number`. It has one guidance and one scale for a whole batch."""
    latents: torch.Tensor = pipeline(
        prompt=PROMPTS,
        negative_prompt=[item.negative_prompt for item in inputs],
        true_cfg_scale=SCALES[number],
        height=64,
        width=96,
        num_inference_steps=3,
        guidance_scale=GUIDANCES[number],
        generator=generators(),
        max_sequence_length=32,
        output_type="latent",
        **more,
    ).images
    return latents[number]


def pipeline_of(pipeline_class: Any, dtype: str, device: str) -> Any:
    return library_pipeline(pipeline_class, "tiny_dev", dtype, device)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert torch.isfinite(ours).all()
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", [NONE, HOISTED], ids=["eager", "hoisted"])
def test_text_to_image_has_the_librarys_bits(load: Load, asked: OptimizationConfig, dtype: str, device: str) -> None:
    inputs = with_negatives(text_inputs())
    ours = run(load("tiny_dev", dtype, asked, device=device), inputs, points())
    pipeline = pipeline_of(FluxPipeline, dtype, device)
    for number in range(3):
        assert torch.equal(ours[number], theirs(pipeline, number, inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_image_to_image_has_the_librarys_bits(load: Load, dtype: str, strength: float, device: str) -> None:
    inputs = with_negatives(fill_inputs())
    model = load("tiny_dev", dtype, device=device, family="flux_img2img")
    ours = run(model, inputs, points(strength=strength))
    pipeline, images = pipeline_of(FluxImg2ImgPipeline, dtype, device), [item.image for item in inputs]
    for number in range(3):
        assert torch.equal(ours[number], theirs(pipeline, number, inputs, image=images, strength=strength))


FURTHER = {
    "flux_inpaint": ("image", "mask_image"),
    "flux_kontext": ("references",),
    "flux_kontext_inpaint": ("image", "mask_image"),
}
"""Further families that take negative prompts, with the pictures of their pipelines."""


def test_every_family_that_takes_negative_prompts_is_compared() -> None:
    assert {name for name in PIPELINE_FAMILIES if FAMILIES[name].takes_negative_prompt} == {
        "flux",
        "flux_img2img",
        "flux_controlnet",  # in test_controlnet.py
        *FURTHER,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FURTHER)
def test_further_families_have_the_librarys_bits(family: str, dtype: str) -> None:
    model, items = model_of(family, dtype), inputs_of(family)
    inputs = [replace(item, negative_prompt=negative) for item, negative in zip(items, NEGATIVES, strict=True)]
    ours = run(model, inputs, points())
    pictures = {
        "image": [item.image or item.references[0] for item in items],
        "mask_image": [item.mask for item in items],
    }
    arguments: dict[str, Any] = {name: pictures[name] for name in ("image", *FURTHER[family]) if name in pictures}
    if family != "flux_kontext":
        arguments["strength"] = 1.0
    if "kontext" in family:
        arguments |= KONTEXT
    for number in range(3):
        assert torch.equal(ours[number], theirs(model.pipeline, number, inputs, **arguments))


@pytest.mark.parametrize("family", FURTHER)
def test_further_families_stay_within_the_tolerance_with_fused_kernels(family: str) -> None:
    items = inputs_of(family)
    inputs = [replace(item, negative_prompt=negative) for item, negative in zip(items, NEGATIVES, strict=True)]
    expected = run(model_of(family), inputs, points())
    assert distance(run(model_of(family, optimization=FUSED), inputs, points()), expected) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [FLUX_DEV, FLUX_SCHNELL], ids=["dev", "schnell"])
def test_random_weights_have_the_librarys_bits_with_and_without_guidance(layout: Any, dtype: torch.dtype) -> None:
    pipeline = random_pipeline(scaled_down(layout), torch.device("cpu"), dtype)
    pipeline.set_progress_bar_config(disable=True)
    inputs = with_negatives(text_inputs())
    ours = run(Flux1Model(pipeline, torch.device("cpu")), inputs, points())
    for number in range(3):
        assert torch.equal(ours[number], theirs(pipeline, number, inputs))


@pytest.mark.parametrize("scales", [[1.0, 1.0, 1.0], SCALES], ids=["one pass", "two passes"])
def test_a_second_prompt_is_t5s(load: Load, scales: Sequence[float]) -> None:
    inputs = [
        replace(item, prompt=PromptPair(clip=str(item.prompt), t5=second))
        for item, second in zip(with_negatives(text_inputs()), SECOND, strict=True)
    ]
    asked = [replace(each, true_cfg_scale=scale) for each, scale in zip(points(), scales, strict=True)]
    ours = run(load("tiny_dev"), inputs, asked)
    pipeline = pipeline_of(FluxPipeline, "float32", "cpu")
    for number, scale in enumerate(scales):
        more = {} if scale > 1 else {"negative_prompt": None}
        arguments = {
            "prompt": PROMPTS,
            "prompt_2": SECOND,
            "negative_prompt": NEGATIVES,
            "true_cfg_scale": scale,
            "guidance_scale": GUIDANCES[number],
        } | more
        latents = pipeline(
            **arguments,
            height=64,
            width=96,
            num_inference_steps=3,
            generator=generators(),
            max_sequence_length=32,
            output_type="latent",
        ).images
        assert torch.equal(ours[number], latents[number])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_guidance_has_the_bits_of_a_python_number(dtype: torch.dtype, device: str) -> None:
    positive, negative = (torch.randn(4, 50, 64, device=device).to(dtype) for _ in range(2))
    scales = [1.1, 1.7, 4.3, 9.99]
    ours = guided(positive, negative, torch.tensor(scales, device=device))
    for number, scale in enumerate(scales):
        expected = negative + scale * (positive - negative)
        assert torch.equal(ours[number], expected[number])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("asked", LOSSLESS, ids=["attention", "hoisted attention", "table", "fused"])
def test_lossless_optimizations_stay_within_the_tolerance(load: Load, asked: OptimizationConfig, device: str) -> None:
    inputs = with_negatives(text_inputs())
    asked = replace(asked, cuda_graph=device == "cuda" and bool(asked.hoist_constants))
    plain, optimized = load("tiny_dev", device=device), load("tiny_dev", optimization=asked, device=device)
    assert not optimized.skipped_optimizations
    expected = run(plain, inputs, points())
    for _ in range(3):  # with a CUDA graph: eager, captured, replayed
        assert distance(run(optimized, inputs, points()), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("asked", LOSSLESS, ids=["attention", "hoisted attention", "table", "fused"])
def test_lossless_rounds_no_worse_than_eager_bfloat16(load: Load, asked: OptimizationConfig, device: str) -> None:
    """The scale multiplies the rounding errors of both passes, so a distance from eager bfloat16 would mean nothing."""
    inputs = with_negatives(text_inputs())
    exact = run(load("tiny_dev", "float32", device=device), inputs, points())
    eager = run(load("tiny_dev", "bfloat16", device=device), inputs, points())
    lossless = run(load("tiny_dev", "bfloat16", asked, device=device), inputs, points())
    assert distance(lossless, exact) <= ROUNDING_LUCK * distance(eager, exact)


@pytest.mark.parametrize("asked", [FUSED, replace(FUSED, fp8_linears=True)], ids=["fused", "fp8"])
def test_one_call_with_the_rows_of_both_passes_gives_what_two_calls_give(
    load: Load, asked: OptimizationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = load("tiny_dev", "bfloat16", asked), with_negatives(text_inputs())
    one_call = run(model, inputs, points())
    monkeypatch.setattr(HoistedDenoiser, "is_exact", True)
    assert distance(one_call, run(model, inputs, points())) < 0.02


def test_an_optimized_denoiser_gets_both_passes_as_rows_of_one_call(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, list[int]] = {}
    inputs = with_negatives(text_inputs())
    for name, asked in (("exact", HOISTED), ("lossless", FUSED)):
        model = load("tiny_dev", optimization=asked)
        passes = model.denoiser.passes  # type: ignore[attr-defined]
        velocity_at, seen = passes.velocity_at, rows.setdefault(name, [])

        def counted(
            tokens: torch.Tensor, *more: Any, velocity_at: Any = velocity_at, seen: list[int] = seen
        ) -> torch.Tensor:
            seen.append(len(tokens))
            result: torch.Tensor = velocity_at(tokens, *more)
            return result

        monkeypatch.setattr(passes, "velocity_at", counted)
        run(model, inputs, points(2))
    assert rows == {"exact": [3, 3, 3, 3], "lossless": [6, 6]}


def full_steps(model: Flux1Model, steps: int) -> int:
    """Full steps of an image with one pass."""
    job = Job(model.condition(text_inputs()[:1], None)[0], point(steps), SEEDS[0])
    return model.denoise([job]).computed_steps[0]


@pytest.mark.slow
@pytest.mark.parametrize("step_cache", [FIRST_BLOCK, TAYLORSEER, MAGCACHE], ids=lambda cache: cache.name)
@pytest.mark.parametrize("asked", [HOISTED, FUSED], ids=["two calls", "twice the rows"])
def test_a_step_cache_keeps_the_passes_apart(
    load: Load, asked: OptimizationConfig, step_cache: StepCacheConfig
) -> None:
    """An image of a batch has the latents and the counts that it has alone: neither passes nor images are mixed."""
    steps = 12
    model = load("tiny_dev", optimization=replace(asked, step_cache=step_cache))
    conditionings = model.condition(with_negatives(text_inputs()), None)
    jobs = [Job(c, p, seed) for c, p, seed in zip(conditionings, points(steps), SEEDS, strict=True)]
    together = model.denoise(jobs)
    for number, job in enumerate(jobs):
        alone = model.denoise([job])
        assert distance(together.packed[number], alone.packed[0]) < 1e-4
        assert together.computed_steps[number] == alone.computed_steps[0]
        assert alone.computed_steps[0] < 2 * steps
    if step_cache is not FIRST_BLOCK:  # both passes follow the plan
        assert together.computed_steps == [2 * full_steps(model, steps)] * 3


def test_first_block_cache_equals_the_librarys(load: Load) -> None:
    """`FluxPipeline` has a cache context for each pass."""
    steps, item = 12, with_negatives(text_inputs())[0]
    pipeline = pipeline_of(FluxPipeline, "float32", "cpu")
    pipeline.transformer.enable_cache(LibraryFirstBlockCache(threshold=0.15))
    expected = pipeline(
        prompt=PROMPTS[0],
        negative_prompt=NEGATIVES[0],
        true_cfg_scale=SCALES[0],
        height=64,
        width=96,
        num_inference_steps=steps,
        guidance_scale=GUIDANCES[0],
        generator=generators()[0],
        max_sequence_length=32,
        output_type="latent",
    ).images
    unlimited = replace(FIRST_BLOCK, max_consecutive_skips=1000, warmup_steps=1, last_steps=0)
    model = load("tiny_dev", optimization=replace(HOISTED, step_cache=unlimited))
    assert distance(run(model, [item], points(steps)[:1]), expected) < 1e-4


def test_magcache_is_calibrated_on_both_passes(load: Load) -> None:
    model = load("tiny_dev", optimization=HOISTED)
    conditionings = model.condition(with_negatives(text_inputs()), None)
    jobs = [Job(c, p, seed) for c, p, seed in zip(conditionings, points(4), SEEDS, strict=True)]
    assert len(measure_ratios(model, [jobs])) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("asked", [HOISTED, FUSED, replace(FUSED, step_cache=FIRST_BLOCK)], ids=str)
def test_ranks_make_both_passes_together(kind: ContextKind, asked: OptimizationConfig) -> None:
    inputs, wanted = with_negatives(text_inputs()), points()
    alone = run(load_tiny("tiny_dev", optimization=asked), inputs, wanted)
    models = [load_tiny("tiny_dev", optimization=replace(asked, step_cache=None)) for _ in range(2)]
    for model in models:
        change_step_cache(model, asked)

    texts: list[str] = []
    ready = threading.Event()

    def one(collectives: Collectives) -> torch.Tensor:
        """The leader sends the start of the batch, as the worker does."""
        model = models[collectives.rank]
        model.enable_context_parallel(collectives, kind)
        if collectives.rank == 0:
            jobs = [Job(c, p, seed) for c, p, seed in zip(model.condition(inputs, None), wanted, SEEDS, strict=True)]
            begun = model.begin(jobs)
            text, tensors = packed(begun, model.device)
            texts.append(text)
            ready.set()
            send(tensors, collectives)
        else:
            ready.wait()
            begun = unpacked(texts[0], collectives)
        return model.integrate(begun).packed

    for latents in linked(2, one):
        assert distance(latents, alone) < 1e-4


def test_without_a_second_pass_negative_prompts_change_nothing(load: Load) -> None:
    model, asked = load("tiny_dev"), [replace(each, true_cfg_scale=1.0) for each in points()]
    assert torch.equal(run(model, with_negatives(text_inputs()), asked), run(model, text_inputs(), asked))


def test_a_text_cache_holds_negative_prompts_and_pairs(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("tiny_dev", optimization=replace(NONE, text_cache=True))
    pair = PromptPair(clip="a large red star", t5="a green cross")
    inputs = [replace(text_inputs()[0], prompt=pair, negative_prompt="blurry")]
    expected = run(model, inputs, points()[:1])
    monkeypatch.setattr(model.prompt_encoder, "encode", None)
    assert torch.equal(run(model, inputs, points()[:1]), expected)
    assert not model.streams_text_encoders([pair, "blurry"], None)


@pytest.mark.parametrize(
    "asked",
    [NONE, HOISTED, replace(HOISTED, attention_backend="fastest", modulation_table=True)],
    ids=["library", "two calls", "twice the rows"],
)
def test_the_loras_of_each_image_are_in_both_of_its_passes(
    load: Load, asked: OptimizationConfig, tmp_path: Path
) -> None:
    mixed, merged = load("tiny_dev", optimization=asked), load("tiny_dev", optimization=asked)
    mixed.mixes_loras = True
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", mixed.transformer), 0.7)
    uses: list[tuple[LoraUse, ...]] = [(), (use,), (replace(use, scale=-0.5),)]
    inputs = [replace(item, lora=own) for item, own in zip(with_negatives(text_inputs()), uses, strict=True)]
    wanted = [replace(each, lora=own) for each, own in zip(points(2), uses, strict=True)]
    found = run(mixed, inputs, wanted)
    for number, (item, each) in enumerate(zip(inputs, wanted, strict=True)):
        job = Job(merged.condition([item], None)[0], each, SEEDS[number])
        assert distance(found[number], merged.denoise([job]).packed[0]) < 1e-3
