"""Step caches: they compute what the library's caches compute, decide for each image, and respect their limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig as LibraryFirstBlockCache
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from diffusers.hooks.mag_cache import MagCacheConfig as LibraryMagCache
from diffusers.hooks.taylorseer_cache import TaylorSeerState

from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    OptimizationConfig,
    StepCacheConfig,
    TaylorSeerCacheConfig,
)
from fluxexp.models.base import Job
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.mag_calibration import measure_ratios
from fluxexp.models.step_cache.step_caches import Extrapolation, magcache_plan, taylorseer_plan
from tests.models.conftest import PROMPTS, SEEDS, Load, fill_inputs, library_pipeline, load_tiny, point, text_inputs

FIRST_BLOCK = FirstBlockCacheConfig(
    name="first_block", threshold=0.15, max_consecutive_skips=3, warmup_steps=2, last_steps=1
)
TAYLORSEER = TaylorSeerCacheConfig(name="taylorseer", interval=3, order=2, warmup_steps=3, last_steps=1)
MAGCACHE = MagCacheConfig(
    name="magcache", threshold=0.2, max_consecutive_skips=3, retention_ratio=0.2, last_steps=1, ratios="flux_dev"
)
CACHES: list[StepCacheConfig] = [FIRST_BLOCK, TAYLORSEER, MAGCACHE]
STEPS = 12


def cached(cache: StepCacheConfig | None) -> OptimizationConfig:
    return replace(NONE, hoist_constants=True, step_cache=cache)


def denoise(model: Flux1Model, inputs: Sequence[Any], points: Sequence[Any], rows: slice = slice(None)) -> Any:
    conditionings = model.condition(inputs, None)
    jobs = [Job(c, p, seed) for c, p, seed in zip(conditionings, points, SEEDS, strict=False)]
    return model.denoise(jobs[rows])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert torch.isfinite(ours).all()
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def library(config: Any, steps: int) -> torch.Tensor:
    """Latents of the library's pipeline with its own cache, for the first prompt."""
    pipeline: Any = library_pipeline(FluxPipeline, "tiny_dev")
    pipeline.transformer.enable_cache(config)
    latents: torch.Tensor = pipeline(
        prompt=PROMPTS[0],
        height=64,
        width=96,
        num_inference_steps=steps,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(SEEDS[0]),
        max_sequence_length=32,
        output_type="latent",
    ).images
    return latents


@pytest.mark.parametrize("threshold", [0.15, 0.3])
def test_first_block_cache_equals_the_librarys_for_one_image(threshold: float) -> None:
    asked = replace(FIRST_BLOCK, threshold=threshold, max_consecutive_skips=99, warmup_steps=1, last_steps=0)
    ours = denoise(load_tiny("tiny_dev", optimization=cached(asked)), text_inputs()[:1], [point(STEPS)])
    assert 1 <= ours.computed_steps[0] < STEPS
    assert distance(ours.packed, library(LibraryFirstBlockCache(threshold=threshold), STEPS)) < 1e-4


def test_magcache_equals_the_librarys_for_one_image() -> None:
    asked = replace(MAGCACHE, last_steps=0)
    ours = denoise(load_tiny("tiny_dev", optimization=cached(asked)), text_inputs()[:1], [point(STEPS)])
    theirs = LibraryMagCache(threshold=0.2, num_inference_steps=STEPS, mag_ratios=FLUX_MAG_RATIOS)
    assert 1 <= ours.computed_steps[0] < STEPS
    assert distance(ours.packed, library(theirs, STEPS)) < 1e-4


@pytest.mark.parametrize("order", [0, 1, 2])
def test_extrapolation_equals_the_librarys(order: int) -> None:
    """Only the arithmetic: the library predicts the output of each layer, and skips the step after the warm-up."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = Extrapolation(order), TaylorSeerState(torch.float32, max_order=order)
    for number in range(12):
        theirs.current_step = number
        if number in (0, 1, 2, 5, 6, 10):
            value = torch.randn(1, 4, 3, generator=generator)
            ours.add(number, value)
            theirs.update((value,))
        else:
            torch.testing.assert_close(ours.at(number), theirs.predict()[0], rtol=1e-5, atol=1e-5)


def test_extrapolation_continues_a_line() -> None:
    line = Extrapolation(1)
    for number in (0, 1, 4):
        line.add(number, torch.full((1,), 3.0 * number, dtype=torch.bfloat16))
    assert line.at(6).item() == 18
    assert line.at(6).dtype == torch.bfloat16


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: str(cache.name))
def test_an_image_does_not_depend_on_its_batch(load: Load, cache: StepCacheConfig, is_fused: bool) -> None:
    asked = replace(cached(cache), fused_kernels=is_fused)
    model, inputs = load("tiny_fill", optimization=asked), fill_inputs()
    points = [point(STEPS, guidance) for guidance in (1.0, 4.0, 30.0)]
    together = denoise(model, inputs, points)
    for row in range(3):
        alone = denoise(model, inputs, points, slice(row, row + 1))
        assert alone.computed_steps == [together.computed_steps[row]]
        assert distance(together.packed[row], alone.packed[0]) < 1e-4


@pytest.mark.parametrize("is_compiled", [False, True])
def test_each_image_decides_for_itself_and_only_needed_rows_are_computed(
    load: Load, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)  # what blocks see does not depend on it
    model = load("tiny_dev", optimization=cached(replace(FIRST_BLOCK, threshold=0.15)))
    denoiser = model.denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    model.denoiser = denoiser = HoistedDenoiser(model.transformer, replace(denoiser.options, is_compiled=is_compiled))
    sizes: list[int] = []
    denoiser.passes.singles[0].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    latents = denoise(model, text_inputs(), [point(STEPS, guidance) for guidance in (1.0, 4.0, 30.0)])
    assert len(set(latents.computed_steps)) > 1
    assert set(sizes) == {3} if is_compiled else sum(sizes) == sum(latents.computed_steps)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: str(cache.name))
def test_caches_skip_the_same_steps_with_fused_kernels_and_cuda_graphs(load: Load, cache: StepCacheConfig) -> None:
    fast = replace(cached(cache), fused_kernels=True, cuda_graph=True)
    points = [point(STEPS, guidance) for guidance in (1.0, 4.0, 30.0)]
    on_cpu = denoise(load("tiny_fill", optimization=cached(cache)), fill_inputs(), points)
    expected = denoise(load("tiny_fill", optimization=cached(cache), device="cuda"), fill_inputs(), points)
    ours = load("tiny_fill", optimization=fast, device="cuda")
    for _ in range(3):
        found = denoise(ours, fill_inputs(), points)
        assert found.computed_steps == expected.computed_steps == on_cpu.computed_steps
        if cache is not FIRST_BLOCK:  # it may skip another step where a change is near the threshold
            # The CPU's latents are no measure: convolutions of the VAE in TF32 are drawn out by extrapolation.
            assert distance(found.packed, expected.packed) < 1e-2


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: str(cache.name))
def test_a_cache_that_never_skips_changes_no_bit(load: Load, cache: StepCacheConfig) -> None:
    asked: StepCacheConfig = replace(cache, last_steps=99)
    plain, full = load("tiny_fill", optimization=cached(None)), load("tiny_fill", optimization=cached(asked))
    for steps in (1, 2, 5):
        ours, theirs = (denoise(model, fill_inputs(), [point(steps)] * 3) for model in (full, plain))
        assert ours.computed_steps == theirs.computed_steps == [steps] * 3
        assert torch.equal(ours.packed, theirs.packed)


@pytest.mark.parametrize(("scheduler", "strength"), [("flow_match_heun", 1.0), ("flow_match_lcm", 1.0), ("unipc", 0.6)])
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: str(cache.name))
def test_other_schedules_and_a_second_batch(
    load: Load, cache: StepCacheConfig, scheduler: str, strength: float
) -> None:
    asked = replace(cache, threshold=9.0) if isinstance(cache, FirstBlockCacheConfig) else cache
    model = load("tiny_fill", optimization=cached(asked))
    points = [point(STEPS, 4.0, strength, scheduler)] * 2
    first = denoise(model, fill_inputs()[:2], points)
    again = denoise(model, fill_inputs()[:2], points)
    assert torch.isfinite(first.packed).all()
    assert torch.equal(first.packed, again.packed)
    assert first.computed_steps == again.computed_steps
    assert max(first.computed_steps) < (2 * STEPS - 1 if scheduler == "flow_match_heun" else int(STEPS * strength))


def test_first_block_cache_respects_its_limits(load: Load) -> None:
    asked = replace(FIRST_BLOCK, threshold=1e9, max_consecutive_skips=2, warmup_steps=3, last_steps=2)
    latents = denoise(load("tiny_fill", optimization=cached(asked)), fill_inputs()[:1], [point(STEPS)])
    assert latents.computed_steps == [3 + 2 + 2]  # of steps 0 to 11: 0, 1, 2, 5, 8 and 10, 11


def test_an_image_with_nan_values_is_never_skipped(load: Load) -> None:
    model = load("tiny_fill", optimization=cached(replace(FIRST_BLOCK, threshold=1e9)))
    with torch.no_grad():
        model.transformer.x_embedder.bias.fill_(torch.nan)
    assert denoise(model, fill_inputs()[:1], [point(STEPS)]).computed_steps == [STEPS]


def test_plans() -> None:
    def steps(plan: list[bool]) -> list[int]:
        return [number for number, is_full in enumerate(plan) if is_full]

    assert steps(taylorseer_plan(TAYLORSEER, 12)) == [0, 1, 2, 5, 8, 11]
    assert steps(taylorseer_plan(TAYLORSEER, 3)) == [0, 1, 2]
    assert steps(taylorseer_plan(replace(TAYLORSEER, warmup_steps=1, last_steps=0), 6)) == [0, 3]
    ratios = torch.tensor([1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.7, 1.0, 1.0])
    mag = replace(MAGCACHE, threshold=0.1, last_steps=0)
    assert steps(magcache_plan(mag, ratios, 10)) == [0, 1, 5, 7]
    assert steps(magcache_plan(mag, ratios, 4, left_out=6)) == [0, 1]  # the last four of ten
    assert steps(magcache_plan(replace(mag, retention_ratio=0.0), ratios, 1)) == [0]


def test_measured_ratios_equal_those_of_the_library(capfd: pytest.CaptureFixture[str]) -> None:
    model = load_tiny("tiny_dev", optimization=cached(None))
    conditioning = model.condition(text_inputs()[:1], None)[0]
    ours = measure_ratios(model, [[Job(conditioning, point(4), SEEDS[0])]])
    library(LibraryMagCache(calibrate=True, num_inference_steps=4), 4)
    printed = capfd.readouterr().out
    theirs = json.loads(printed[printed.index("[", printed.index("mag_ratios")) :].split("\n")[0])
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.gpu
@pytest.mark.parametrize("cache", [TAYLORSEER, MAGCACHE], ids=lambda cache: str(cache.name))
def test_planned_caches_never_wait_for_the_device(load: Load, cache: StepCacheConfig) -> None:
    model = load("tiny_fill", "bfloat16", cached(cache), device="cuda")
    denoiser, points = model.denoiser, [point(STEPS)] * 3
    denoise(model, fill_inputs(), points)
    prepare = denoiser.prepare

    def watched(*arguments: Any) -> Any:
        step = prepare(*arguments)
        torch.cuda.set_sync_debug_mode("error")
        return step

    denoiser.prepare = watched  # type: ignore[method-assign,assignment]
    try:
        latents = denoise(model, fill_inputs(), points)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert max(latents.computed_steps) < STEPS


@pytest.mark.gpu
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: str(cache.name))
def test_compiled_blocks_skip_the_same_steps(
    load: Load, cache: StepCacheConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where different roundings are too small to cross a threshold."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    eager, compiled = (
        load("tiny_fill", optimization=replace(cached(cache), compile_blocks=compile_blocks), device="cuda")
        for compile_blocks in (False, True)
    )
    points = [point(STEPS, guidance) for guidance in (1.0, 4.0, 30.0)]
    theirs, ours = (denoise(model, fill_inputs(), points) for model in (eager, compiled))
    assert ours.computed_steps == theirs.computed_steps
    assert distance(ours.packed, theirs.packed) < 1e-3
