"""Families with a ControlNet give the bits of their pipelines in diffusers, with mixed control images and scales."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxexp.config.families import FAMILIES
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import FirstBlockCacheConfig, OptimizationConfig, StepCacheConfig, TaylorSeerCacheConfig
from fluxexp.models.base import Decoded, Job, ModelInput
from fluxexp.models.flux1.control_residuals import ResidualLayout
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.offloading import offload, parts_of, work_for
from fluxexp.models.kernels.fp8_linear import Fp8Linear
from fluxexp.models.loading.random_weights import random_pipeline
from fluxexp.models.offload.offload_plan import OffloadPlan
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import ControlUse, LoraUse, Point
from tests import lora_files
from tests.models.conftest import PROMPTS, generators, inputs_of, point, run
from tests.models.small_layouts import copied, scaled_down
from tests.ranks import linked

FAMILY_NAMES = ["flux_controlnet", "flux_controlnet_img2img", "flux_controlnet_inpaint"]
KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"guidance_embeds": True},
    "without guidance": {"num_single_layers": 0},
    "union": {"guidance_embeds": True, "num_mode": 10},
    "xlabs": {
        "guidance_embeds": True,
        "num_single_layers": 0,
        "patch_size": 2,
        "conditioning_embedding_channels": 16,
    },
}
"""How ControlNets differ: the kinds that are published."""
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GUIDANCES = [1.0, 4.0, 30.0]
STEPS = 3
USES = [ControlUse(scale=0.7), ControlUse(scale=1.3, end=0.5), ControlUse(scale=0.45, start=0.25, end=0.8)]
HOISTED = replace(NONE, hoist_constants=True)
EXACT = [pytest.param(NONE, "float32", id="eager"), pytest.param(HOISTED, "bfloat16", id="hoisted")]
"""Together with the other tests, each of eager and hoisted is compared in both dtypes."""
FUSED = replace(HOISTED, modulation_table=True, fused_kernels=True, attention_backend="fastest")
GRAPHED = replace(FUSED, cuda_graph=True, fused_vae=True)
TAYLORSEER = TaylorSeerCacheConfig(name="taylorseer", interval=3, order=1, warmup_steps=1, last_steps=1)
FIRST_BLOCK = FirstBlockCacheConfig(
    name="first_block", threshold=100.0, warmup_steps=1, last_steps=1, max_consecutive_skips=1
)


def model_of(
    family: str = "flux_controlnet",
    kind: str = "plain",
    dtype: str = "float32",
    device: str = "cpu",
    optimization: OptimizationConfig = NONE,
) -> Flux1Model:
    """A small model with 3 double and 3 single blocks, and a ControlNet with 2 and 2."""
    model = Flux1Model(pipeline_of(family, kind, dtype, device), torch.device(device))
    apply_optimizations(model, optimization, 64)
    return model


@copied
def pipeline_of(family: str, kind: str, dtype: str, device: str) -> Any:
    declared = FAMILIES[family]
    layout = scaled_down(LAYOUTS["flux_dev"])
    layout = replace(layout, transformer={**layout.transformer, "num_layers": 3, "num_single_layers": 3})
    own = {name: layout.transformer[name] for name in layout.transformer if name not in ("out_channels",)}
    controlnet = {**own, "num_layers": 2, "num_single_layers": 2, "guidance_embeds": False, **KINDS[kind]}
    pipeline: Any = random_pipeline(
        layout, torch.device(device), getattr(torch, dtype), family=declared, controlnet=controlnet
    )
    for layer in (*pipeline.controlnet.controlnet_blocks, *pipeline.controlnet.controlnet_single_blocks):
        layer.weight.data *= 10  # small random weights would change little
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: list[int]) -> None:
    """Note the batch size of each call of the method `name` of `owner`."""
    method = getattr(owner, name)

    def counted(tensor: torch.Tensor) -> Any:
        calls.append(len(tensor))
        return method(tensor)

    monkeypatch.setattr(owner, name, counted)


def points_of(kind: str, strength: float = 1.0, uses: Sequence[ControlUse] = USES) -> list[Point]:
    """Points with mixed guidance, factors and, for a Union, modes."""
    modes = [3, 0, 9] if kind == "union" else [None] * 3
    return [
        replace(point(STEPS, guidance, strength), control=replace(use, mode=mode))
        for guidance, use, mode in zip(GUIDANCES, uses, modes, strict=True)
    ]


def arguments_of(items: Sequence[ModelInput], asked: Point, strength: float) -> dict[str, Any]:
    """The arguments of the family's pipeline."""
    use = asked.control
    given: dict[str, Any] = {
        "prompt": PROMPTS,
        "control_image": [item.control_image for item in items],
        "controlnet_conditioning_scale": use.scale,
        "control_guidance_start": use.start,
        "control_guidance_end": use.end,
        "control_mode": use.mode,
        "guidance_scale": asked.guidance,
        "height": 64,
        "width": 96,
        "num_inference_steps": STEPS,
        "generator": generators(),
        "max_sequence_length": 32,
        "output_type": "latent",
    }
    if items[0].image is not None:
        given |= {"image": [item.image for item in items], "strength": strength}
    if items[0].mask is not None:
        given["mask_image"] = [item.mask for item in items]
    return given


def assert_same_bits(model: Flux1Model, items: Sequence[ModelInput], points: Sequence[Point], strength: float) -> None:
    ours = run(model, items, points)
    assert torch.isfinite(ours).all()
    for index, asked in enumerate(points):
        given = arguments_of(items, asked, strength)
        if asked.true_cfg_scale > 1:
            given |= {
                "negative_prompt": [item.negative_prompt for item in items],
                "true_cfg_scale": asked.true_cfg_scale,
            }
        if asked.control.mode is not None and items[0].image is not None:
            given["control_mode"] = [asked.control.mode] * len(items)  # these pipelines do not repeat a single mode
        theirs = model.pipeline(**given).images
        assert torch.equal(ours[index], theirs[index])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("optimization", "dtype"), EXACT)
@pytest.mark.parametrize("kind", KINDS)
def test_text_to_image(kind: str, optimization: OptimizationConfig, dtype: str, device: str) -> None:
    model = model_of("flux_controlnet", kind, dtype, device, optimization)
    assert_same_bits(model, inputs_of("flux_controlnet"), points_of(kind), 1.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("family", "kind", "strength", "dtype"),
    [
        ("flux_controlnet_img2img", "union", 0.6, "bfloat16"),
        ("flux_controlnet_img2img", "xlabs", 1.0, "float32"),
        ("flux_controlnet_img2img", "plain", 0.3, "float32"),
        ("flux_controlnet_inpaint", "union", 1.0, "float32"),
        ("flux_controlnet_inpaint", "xlabs", 0.6, "bfloat16"),
        ("flux_controlnet_inpaint", "plain", 0.6, "float32"),
    ],
)
def test_image_to_image_and_inpainting(family: str, kind: str, strength: float, dtype: str, device: str) -> None:
    model = model_of(family, kind, dtype, device)
    assert_same_bits(model, inputs_of(family), points_of(kind, strength), strength)


def with_second_pass() -> tuple[list[ModelInput], list[Point]]:
    items = [
        replace(item, negative_prompt=text)
        for item, text in zip(inputs_of("flux_controlnet"), ["a blue square", "", "blurry"], strict=True)
    ]
    points = [replace(each, true_cfg_scale=s) for each, s in zip(points_of("plain"), [1.7, 3.3, 6.0], strict=True)]
    return items, points


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("optimization", "dtype"), EXACT)
def test_the_second_pass_has_the_residuals_of_the_first(
    optimization: OptimizationConfig, dtype: str, device: str
) -> None:
    model = model_of("flux_controlnet", "plain", dtype, device, optimization)
    assert_same_bits(model, *with_second_pass(), 1.0)


def test_one_call_with_both_passes_stays_within_the_tolerance() -> None:
    items, points = with_second_pass()
    ours, theirs = run(model_of(optimization=FUSED), items, points), run(model_of(), items, points)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_image_scale_and_mode_change_the_result(family: str) -> None:
    model, items, asked = model_of(family, "union"), inputs_of(family), points_of("union")
    plain = run(model, items, asked)
    others = [replace(item, control_image=items[(n + 1) % 3].control_image) for n, item in enumerate(items)]
    assert (run(model, others, asked) != plain).any(dim=(1, 2)).all()
    for change in ({"scale": 0.9}, {"mode": 5}, {"end": 0.3}):
        changed = [replace(each, control=replace(each.control, start=0.0, **change)) for each in asked]
        assert (run(model, items, changed) != plain).any(dim=(1, 2)).all()


@pytest.mark.parametrize("optimization", [NONE, HOISTED], ids=["eager", "hoisted"])
def test_the_controlnet_is_not_run_at_steps_without_it(
    optimization: OptimizationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(optimization=optimization)
    calls: list[int] = []
    count_calls(monkeypatch, model.pipeline.controlnet.transformer_blocks[0].norm2, "forward", calls)
    run(model, inputs_of("flux_controlnet"), points_of("plain", uses=[ControlUse(start=0.2, end=0.7)] * 3))
    assert calls == [3], "one step of three"
    run(model, inputs_of("flux_controlnet"), points_of("plain", uses=[ControlUse(scale=0.0)] * 3))
    assert calls == [3]


def test_the_vae_encodes_no_picture_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    for kind in ("plain", "xlabs"):
        model = model_of("flux_controlnet_inpaint", kind)
        count_calls(monkeypatch, model.vae, "encode", encoded)
        run(model, inputs_of("flux_controlnet_inpaint"), points_of(kind, 0.5))
    assert encoded == [3, 1, 1, 1, 1, 1, 1], "not the masked images, and no control images for XLabs"


@pytest.mark.parametrize("context_kind", ["ulysses", "ring"])
@pytest.mark.parametrize(("kind", "optimization"), [("union", HOISTED), ("plain", FUSED)], ids=["union", "fused"])
def test_ranks_give_the_latents_of_one(kind: str, optimization: OptimizationConfig, context_kind: Any) -> None:
    items, asked = inputs_of("flux_controlnet", 2), points_of(kind)[:2]
    models = [model_of("flux_controlnet", kind, optimization=optimization) for _ in range(2)]
    alone = run(model_of("flux_controlnet", kind, optimization=optimization), items, asked)

    def one(collectives: Collectives) -> torch.Tensor:
        model = models[collectives.rank]
        model.enable_context_parallel(collectives, context_kind)
        return run(model, items, asked)

    first, second = linked(2, one)
    assert float((first - alone).norm() / alone.norm()) < 1e-5
    assert torch.equal(first, second)
    models[0].disable_context_parallel()
    assert torch.equal(run(models[0], items, asked), alone)


@pytest.mark.parametrize("cache", [TAYLORSEER, FIRST_BLOCK], ids=["planned", "by content"])
def test_steps_without_blocks_are_also_without_the_controlnet(
    cache: StepCacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(optimization=replace(HOISTED, step_cache=cache))
    calls: list[int] = []
    count_calls(monkeypatch, model.pipeline.controlnet.transformer_blocks[0].norm2, "forward", calls)
    conditionings = model.condition(inputs_of("flux_controlnet"), None)
    latents = model.denoise([Job(each, point(6), 7) for each in conditionings])
    assert torch.isfinite(latents.packed).all()
    (steps,) = set(model.computed_steps(latents))
    assert steps < 6
    assert len(calls) == steps


def test_a_step_cache_that_skips_nothing_changes_no_bit() -> None:
    cache = replace(FIRST_BLOCK, threshold=1e-9)
    plain, cached = model_of(optimization=HOISTED), model_of(optimization=replace(HOISTED, step_cache=cache))
    items, asked = inputs_of("flux_controlnet"), points_of("plain")
    assert torch.equal(run(cached, items, asked), run(plain, items, asked))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_start_of_a_batch_can_be_sent_to_other_ranks(family: str) -> None:
    model = model_of(family, "union", optimization=HOISTED)
    jobs = [Job(c, p, 7) for c, p in zip(model.condition(inputs_of(family), None), points_of("union"), strict=True)]
    sent = pickle.loads(pickle.dumps(model.begin(jobs)))
    assert torch.equal(model.integrate(sent).packed, model.denoise(jobs).packed)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_blocks_stay_within_the_tolerance(kind: str, dtype: str, tolerance: float) -> None:
    plain, fused = (model_of("flux_controlnet", kind, dtype, optimization=each) for each in (NONE, FUSED))
    assert "fused_kernels" in fused.applied_optimizations
    items = inputs_of("flux_controlnet")
    ours, theirs = run(fused, items, points_of(kind)), run(plain, items, points_of(kind))
    assert float((ours.float() - theirs.float()).norm() / theirs.float().norm()) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_lossless_optimizations_on_a_gpu_stay_within_the_tolerance(kind: str) -> None:
    plain = model_of("flux_controlnet", kind, "bfloat16", "cuda")
    fast = model_of("flux_controlnet", kind, "bfloat16", "cuda", GRAPHED)
    assert not fast.skipped_optimizations
    items, asked = inputs_of("flux_controlnet"), points_of(kind)
    theirs = run(plain, items, asked).float()
    for _ in range(2):  # the second time, the steps are replayed
        ours = run(fast, items, asked).float()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_no_stage_waits_for_the_device(family: str) -> None:
    model = model_of(family, "union", "bfloat16", "cuda", GRAPHED)

    def make() -> Decoded:
        conditionings = model.condition(inputs_of(family), None)
        jobs = [Job(c, p, 7) for c, p in zip(conditionings, points_of("union", 0.6), strict=True)]
        return model.decode(model.denoise(jobs))

    make().images()
    expected = make().images()  # the second time, the steps are captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoded = make()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [image and image.tobytes() for image in decoded.images()] == [one and one.tobytes() for one in expected]


def test_the_blocks_of_the_controlnet_are_quantized_as_well() -> None:
    items, asked = inputs_of("flux_controlnet"), points_of("plain")
    plain, quantized = (
        model_of(dtype="bfloat16", optimization=replace(FUSED, fp8_linears=is_on)) for is_on in (False, True)
    )
    assert any(isinstance(layer, Fp8Linear) for layer in quantized.pipeline.controlnet.modules())
    ours, theirs = run(quantized, items, asked).float(), run(plain, items, asked).float()
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.1


def test_offload_plans_count_the_controlnet() -> None:
    with_it, without = model_of().pipeline, model_of().pipeline
    without.register_modules(controlnet=None)
    sizes = [parts_of(each, NONE) for each in (with_it, without)]
    own = sum(tensor.nbytes for tensor in with_it.controlnet.state_dict().values())
    assert sizes[0].all - sizes[1].all == own == sizes[0].vae - sizes[1].vae
    assert work_for(with_it, NONE, 64**2).denoise > work_for(without, NONE, 64**2).denoise


def test_streamed_blocks_and_a_lora_keep_the_controlnet_as_it_is(tmp_path: Path) -> None:
    items, asked = inputs_of("flux_controlnet"), points_of("plain")
    merged, streamed = model_of(optimization=HOISTED), model_of(optimization=HOISTED)
    lora = (LoraUse(lora_files.peft(tmp_path / "a.safetensors", merged.transformer), 0.5),)
    with_lora = [replace(each, lora=lora) for each in asked]
    expected = run(merged, items, with_lora)
    streams = offload(streamed, OffloadPlan("group", 0, num_slots=2, num_total=(6, 9)))
    assert isinstance(streamed.denoiser, HoistedDenoiser)
    options = replace(streamed.denoiser.options, streams=streams)
    streamed.denoiser = HoistedDenoiser(streamed.transformer, options, layout=streamed.residual_layout)
    assert torch.equal(run(streamed, items, with_lora), expected)
    assert not torch.equal(run(streamed, items, asked), expected)
    assert torch.equal(run(merged, items, asked), run(streamed, items, asked))


def test_residuals_belong_to_blocks_as_in_the_library() -> None:
    layout = ResidualLayout(doubles=5, singles=10, repeats=False)
    assert [layout.of_double(number, 19) for number in range(19)] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 3
    assert [layout.of_single(number, 38) for number in (0, 3, 4, 37)] == [5, 5, 6, 14]
    xlabs = ResidualLayout(doubles=2, singles=0, repeats=True)
    assert [xlabs.of_double(number, 19) for number in range(4)] == [0, 1, 0, 1]
    assert xlabs.of_single(0, 38) is None
