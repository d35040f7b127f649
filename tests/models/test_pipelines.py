"""Inpainting, Control and Kontext give the bits of their pipelines in diffusers, with mixed guidance in a batch."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fluxexp.config.families import FAMILIES
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import FirstBlockCacheConfig, OptimizationConfig, StepCacheConfig, TaylorSeerCacheConfig
from fluxexp.errors import SampleError
from fluxexp.models.base import Decoded, Job, ModelInput
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import Point
from tests.models.conftest import PROMPTS, generators, inputs_of, point, run
from tests.models.small_layouts import small_pipeline
from tests.ranks import linked

GUIDANCES = [1.0, 4.0, 30.0]
SCALES = [1.7, 3.3, 6.0]
"""Of true CFG."""
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WITH_NEGATIVES = ["flux_inpaint", "flux_kontext", "flux_kontext_inpaint"]
NEGATIVES = ["a blue square", "", "blurry"]
NEW = [
    "flux_inpaint",
    "flux_control",
    "flux_control_img2img",
    "flux_control_inpaint",
    "flux_kontext",
    "flux_kontext_inpaint",
]
DTYPES = ["float32", "bfloat16"]
STEPS = 3
KONTEXT = {"max_area": 64 * 96, "_auto_resize": False}
"""Arguments with which the pipeline keeps the asked size and that of the pictures, as fluxexp always does."""
HOISTED = replace(NONE, hoist_constants=True)
TAYLORSEER = TaylorSeerCacheConfig(name="taylorseer", interval=3, order=1, warmup_steps=1, last_steps=1)
FIRST_BLOCK = FirstBlockCacheConfig(
    name="first_block", threshold=100.0, warmup_steps=1, last_steps=1, max_consecutive_skips=1
)
FUSED = replace(HOISTED, modulation_table=True, fused_kernels=True, attention_backend="fastest")
GRAPHED = replace(FUSED, cuda_graph=True, fused_vae=True)


def model_of(
    family: str, dtype: str = "float32", device: str = "cpu", optimization: OptimizationConfig = NONE
) -> Flux1Model:
    """A small model of random weights, whose `pipeline` is that of diffusers."""
    model = Flux1Model(small_pipeline(family, device, dtype), torch.device(device))
    apply_optimizations(model, optimization, 64)
    return model


def with_negatives(items: Sequence[ModelInput]) -> list[ModelInput]:
    return [replace(item, negative_prompt=text) for item, text in zip(items, NEGATIVES, strict=False)]


def two_passes(steps: int = STEPS) -> list[Point]:
    """Points of mixed guidance with a second pass."""
    return [replace(point(steps, g, 0.6), true_cfg_scale=scale) for g, scale in zip(GUIDANCES, SCALES, strict=True)]


def arguments_of(family: str, items: Sequence[ModelInput]) -> dict[str, Any]:
    """The pictures of these inputs as arguments of the family's pipeline, and what makes it keep the sizes."""
    declared = FAMILIES[family]
    arguments: Mapping[str, Sequence[Any]] = {
        "image": [item.image or item.references[0] for item in items if item.image or item.references],
        "mask_image": [item.mask for item in items if item.mask],
        "control_image": [item.control_image for item in items if item.control_image],
        "image_reference": [item.references[0] for item in items if item.image and item.references],
    }
    given = {name: pictures for name, pictures in arguments.items() if pictures}
    return given | (KONTEXT if declared.appended_pictures else {})


def assert_same_bits(
    model: Flux1Model,
    items: Sequence[ModelInput],
    strength: float = 1.0,
    scales: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Our batch of mixed guidance has, for each guidance, the latents of the family's pipeline.

    Args:
        model: a model of a family, with the pipeline of diffusers.
        items: its inputs.
        strength: of the pipelines that have one.
        scales: of true CFG, also mixed. Then `items` have negative prompts.
    """
    has_strength = "strength" in inspect.signature(model.pipeline.__call__).parameters
    asked = [point(STEPS, guidance, strength) for guidance in GUIDANCES]
    ours = run(model, items, [replace(each, true_cfg_scale=s) for each, s in zip(asked, scales, strict=True)])
    for index, (guidance, scale) in enumerate(zip(GUIDANCES, scales, strict=True)):
        negative = [item.negative_prompt for item in items]
        theirs = model.pipeline(
            prompt=PROMPTS,
            height=64,
            width=96,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=generators(),
            max_sequence_length=32,
            output_type="latent",
            **({"strength": strength} if has_strength else {}),
            **({"negative_prompt": negative, "true_cfg_scale": scale} if scale > 1 else {}),
            **arguments_of(model.family.name, items),
        ).images
        assert torch.isfinite(ours).all()
        assert torch.equal(ours[index], theirs[index])


def has_strength(family: str) -> bool:
    """Whether denoising may start from an image."""
    return "image" in FAMILIES[family].required


BITS = [(family, strength) for family in NEW for strength in ((1.0, 0.6, 0.3) if has_strength(family) else (1.0,))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "strength"), BITS)
def test_latents_are_those_of_the_pipeline(family: str, strength: float, dtype: str, device: str) -> None:
    assert_same_bits(model_of(family, dtype, device), inputs_of(family), strength)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimization", [NONE, HOISTED], ids=["eager", "hoisted"])
@pytest.mark.parametrize("family", WITH_NEGATIVES)
def test_latents_with_negative_prompts_are_those_of_the_pipeline(
    family: str, optimization: OptimizationConfig, dtype: str, device: str
) -> None:
    model = model_of(family, dtype, device, optimization)
    assert_same_bits(model, with_negatives(inputs_of(family)), 0.6 if has_strength(family) else 1.0, SCALES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.3])
def test_kontext_inpaint_looks_at_references(dtype: str, strength: float, device: str) -> None:
    model, items = model_of("flux_kontext_inpaint", dtype, device), inputs_of("flux_kontext_inpaint")
    looks = inputs_of("flux_kontext")
    items = [replace(item, references=look.references) for item, look in zip(items, looks, strict=True)]
    assert_same_bits(model, items, strength)


def test_kontext_at_a_size_that_the_library_chooses_itself() -> None:
    """At a preferred resolution nothing is resized, so that the pipeline needs no argument for it."""
    width, height = 1024, 1024
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    item = ModelInput(prompt="a cat", height=height, width=width, references=(picture,))
    model = model_of("flux_kontext")
    ours = run(model, [item], [point(1, 3.5)])
    theirs = model.pipeline(
        image=picture,
        prompt="a cat",
        num_inference_steps=1,
        generator=generators()[:1],
        max_sequence_length=32,
        output_type="latent",
    ).images
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["flux_kontext", "flux_kontext_inpaint"])
def test_several_references_of_a_sample_are_refused_as_the_library_does(family: str) -> None:
    model, (item,) = model_of(family), inputs_of(family, 1)
    pair = tuple(each.references[0] for each in inputs_of("flux_kontext", 2))
    with pytest.raises(SampleError, match=rf"the sample has 2 references, but model\.family={family} looks at 1"):
        model.condition([replace(item, references=pair)], None)
    if family == "flux_kontext":
        with pytest.raises(RuntimeError, match="shape"):  # two pictures for one prompt
            model.pipeline(image=list(pair), prompt="x", height=64, width=96, num_inference_steps=1, **KONTEXT)


def test_a_batch_may_mix_references_and_images_as_context() -> None:
    model, items = model_of("flux_kontext_inpaint"), inputs_of("flux_kontext_inpaint")
    mixed = [replace(items[0], references=inputs_of("flux_kontext")[0].references), *items[1:]]
    asked = [point(STEPS, 4.0, 0.6)] * 3
    plain, ours = run(model, items, asked), run(model, mixed, asked)
    assert not torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1:], plain[1:])


def encodes_of(model: Flux1Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the number of pictures of each call of the VAE's encoder from now on."""
    encode, encoded = model.vae.encode, []

    def counted(pixels: torch.Tensor) -> Any:
        encoded.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(model.vae, "encode", counted)
    return encoded


def test_kontext_inpaint_encodes_its_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the start, the blend and the context."""
    model, items = model_of("flux_kontext_inpaint"), inputs_of("flux_kontext_inpaint")
    encoded = encodes_of(model, monkeypatch)
    run(model, items, [point(2, 4.0, 0.5)] * 3)
    assert encoded == [1, 1, 1]


def test_inpaint_encodes_each_image_once_for_all_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = model_of("flux_inpaint"), inputs_of("flux_inpaint")
    encoded = encodes_of(model, monkeypatch)
    for strength in (1.0, 0.5, 0.5):
        run(model, items, [point(strength=strength)] * 3)
    assert encoded == [1, 1, 1] * 3, "diffusers also encodes the masked images"
    conditioned = model.condition(items, None)
    encoded.clear()
    for guidance in (1.0, 2.0):
        model.denoise([Job(each, point(2, guidance, 0.5), 7) for each in conditioned])
    assert encoded == [1, 1, 1]


@pytest.mark.parametrize(
    "scheduler", ["flow_match_heun", "flow_match_lcm", "dpmsolver_multistep", "dpmsolver_singlestep", "unipc", "deis"]
)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_inpaint_ends_with_the_image_outside_the_mask_for_every_scheduler(scheduler: str, strength: float) -> None:
    model, items = model_of("flux_inpaint"), inputs_of("flux_inpaint")
    asked = [point(STEPS, 4.0, strength, scheduler)] * 3
    changed = [replace(item, prompt=f"other {item.prompt}") for item in items]
    first, second = run(model, items, asked), run(model, changed, [replace(one, guidance=9.0) for one in asked])
    differs = (first != second).any(dim=-1)
    assert differs.any(), "inside the mask the prompt matters"
    for each, item in zip(differs, items, strict=True):
        assert item.mask is not None
        left, top, right, bottom = item.mask.getbbox() or (0, 0, 0, 0)
        inside = torch.zeros(4, 6, dtype=torch.bool)
        inside[top // 16 : -(-bottom // 16), left // 16 : -(-right // 16)] = True
        assert not each[~inside.flatten()].any(), "outside it the result is the image"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", NEW)
def test_hoisting_constants_changes_no_bit(family: str, dtype: str) -> None:
    plain, hoisted = model_of(family, dtype), model_of(family, dtype, optimization=HOISTED)
    assert hoisted.applied_optimizations == ["hoist_constants"]
    asked = [point(STEPS, guidance, 0.6) for guidance in GUIDANCES]
    assert torch.equal(run(hoisted, inputs_of(family), asked), run(plain, inputs_of(family), asked))


def assert_ranks_agree(
    family: str, optimization: OptimizationConfig, kind: Any, items: Sequence[ModelInput], asked: Sequence[Point]
) -> None:
    """Two ranks that make a batch together have the latents of one rank."""
    models = [model_of(family, optimization=optimization) for _ in range(2)]
    alone = run(model_of(family, optimization=optimization), items, asked)

    def one(collectives: Collectives) -> torch.Tensor:
        model = models[collectives.rank]
        model.enable_context_parallel(collectives, kind)
        return run(model, items, asked)

    first, second = linked(2, one)
    assert float((first - alone).norm() / alone.norm()) < 1e-5
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("family", [*NEW, "flux", "flux_img2img"])
def test_ranks_give_the_latents_of_one(family: str, kind: Any) -> None:
    assert_ranks_agree(
        family, HOISTED, kind, inputs_of(family, 2), [point(2, guidance, 0.6) for guidance in (3.0, 4.0)]
    )


@pytest.mark.parametrize("cache", [TAYLORSEER, FIRST_BLOCK], ids=["planned", "by content"])
@pytest.mark.parametrize("family", NEW)
def test_step_caches_skip_blocks(family: str, cache: StepCacheConfig) -> None:
    model = model_of(family, optimization=replace(HOISTED, step_cache=cache))
    conditionings = model.condition(inputs_of(family), None)
    latents = model.denoise([Job(each, point(6), 7) for each in conditionings])
    assert torch.isfinite(latents.packed).all()
    assert all(steps < 6 for steps in model.computed_steps(latents))


@pytest.mark.parametrize("family", NEW)
def test_the_start_of_a_batch_can_be_sent_to_other_ranks(family: str) -> None:
    model = model_of(family, optimization=HOISTED)
    jobs = [Job(each, point(2, 4.0, 0.6), 7) for each in model.condition(inputs_of(family), None)]
    sent = pickle.loads(pickle.dumps(model.begin(jobs)))
    assert torch.equal(model.integrate(sent).packed, model.denoise(jobs).packed)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("family", NEW)
def test_fused_blocks_stay_within_the_tolerance(family: str, dtype: str, tolerance: float) -> None:
    plain, fused = model_of(family, dtype), model_of(family, dtype, optimization=FUSED)
    assert "fused_kernels" in fused.applied_optimizations
    asked = [point(STEPS, guidance, 0.6) for guidance in GUIDANCES]
    ours, theirs = run(fused, inputs_of(family), asked), run(plain, inputs_of(family), asked)
    assert float((ours.float() - theirs.float()).norm() / theirs.float().norm()) < tolerance


@pytest.mark.parametrize(
    "optimization",
    [replace(HOISTED, attention_backend="fastest"), replace(HOISTED, modulation_table=True)],
    ids=["attention", "table"],
)
@pytest.mark.parametrize("family", WITH_NEGATIVES)
def test_one_call_with_both_passes_stays_within_the_tolerance(family: str, optimization: OptimizationConfig) -> None:
    plain, fast, items = (
        model_of(family),
        model_of(family, optimization=optimization),
        with_negatives(inputs_of(family)),
    )
    assert not fast.skipped_optimizations
    ours, theirs = run(fast, items, two_passes()), run(plain, items, two_passes())
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("optimization", [HOISTED, FUSED], ids=["two calls", "twice the rows"])
def test_ranks_make_both_passes_of_kontext(optimization: OptimizationConfig, kind: Any) -> None:
    items = with_negatives(inputs_of("flux_kontext", 2))
    assert_ranks_agree("flux_kontext", optimization, kind, items, two_passes(2)[:2])


@pytest.mark.parametrize("asked", [HOISTED, FUSED], ids=["two calls", "twice the rows"])
def test_a_step_cache_skips_blocks_of_both_passes_of_kontext(asked: OptimizationConfig) -> None:
    model = model_of("flux_kontext", optimization=replace(asked, step_cache=TAYLORSEER))
    conditionings = model.condition(with_negatives(inputs_of("flux_kontext")), None)
    latents = model.denoise([Job(c, p, 7) for c, p in zip(conditionings, two_passes(6), strict=True)])
    assert torch.isfinite(latents.packed).all()
    assert all(steps < 12 for steps in model.computed_steps(latents))


@pytest.mark.gpu
@pytest.mark.parametrize("family", NEW)
def test_lossless_optimizations_on_a_gpu_stay_within_the_tolerance(family: str) -> None:
    plain, fast = model_of(family, "bfloat16", "cuda"), model_of(family, "bfloat16", "cuda", GRAPHED)
    assert not fast.skipped_optimizations
    asked = [point(STEPS, guidance, 0.6) for guidance in GUIDANCES]
    theirs = run(plain, inputs_of(family), asked).float()
    for _ in range(2):  # the second time, the step is replayed
        ours = run(fast, inputs_of(family), asked).float()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("family", NEW)
def test_no_stage_waits_for_the_device(family: str, strength: float) -> None:
    model = model_of(family, "bfloat16", "cuda", GRAPHED)

    def make() -> Decoded:
        jobs = [Job(each, point(strength=strength), 7) for each in model.condition(inputs_of(family), None)]
        return model.decode(model.denoise(jobs))

    expected = make().images()
    make().images()  # the second time, the step is captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoded = make()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert decoded.images() == expected
