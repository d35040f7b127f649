"""An IP-Adapter gives the bits of the library's pipelines, with mixed guidance and factors in a batch."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fluxexp.config.families import FAMILIES
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import OptimizationConfig, StepCacheConfig
from fluxexp.errors import SampleError
from fluxexp.models.base import Decoded, Job, ModelInput
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.flux1.offloading import offload
from fluxexp.models.loading.picture_encoders import add_random_ip_adapter
from fluxexp.models.loading.random_weights import draw_weights, pipeline_without_weights
from fluxexp.models.offload.offload_plan import OffloadPlan
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import IpAdapterUse, Point
from tests.models.conftest import PROMPTS, SEEDS, generators, inputs_of, point, run
from tests.models.small_layouts import copied, scaled_down
from tests.models.test_pipelines import (
    DEVICES,
    DTYPES,
    FIRST_BLOCK,
    FUSED,
    GRAPHED,
    GUIDANCES,
    HOISTED,
    KONTEXT,
    SCALES,
    STEPS,
    TAYLORSEER,
    with_negatives,
)
from tests.models.test_weight_streaming import PLANS
from tests.ranks import linked

USES = [IpAdapterUse(), IpAdapterUse(0.7, (0.5, 2.0)), IpAdapterUse(-1.3)]
BLOCKS = 2


def adapted_model(
    family: str = "flux", dtype: str = "float32", optimization: OptimizationConfig = NONE, device: str = "cpu"
) -> Flux1Model:
    """A small model of random weights with two double blocks and an IP-Adapter that matters."""
    model = Flux1Model(adapted_pipeline(family, dtype, device), torch.device(device), FAMILIES[family])
    apply_optimizations(model, optimization, 64)
    return model


@copied
def adapted_pipeline(family: str, dtype: str, device: str) -> Any:
    declared, place = FAMILIES[family], torch.device(device)
    layout = scaled_down(LAYOUTS[declared.layouts[0]])
    layout = replace(layout, transformer={**layout.transformer, "num_layers": BLOCKS})
    pipeline: Any = pipeline_without_weights(layout, getattr(torch, dtype), declared)
    add_random_ip_adapter(pipeline, layout)
    draw_weights(pipeline, place, place)
    for block in pipeline.transformer.transformer_blocks:
        block.attn.processor.to_v_ip[0].weight.data.mul_(20)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def items_of(family: str, number: int = 3) -> list[ModelInput]:
    references = [item.references for item in inputs_of("flux_kontext", number)]
    return [replace(item, references=own) for item, own in zip(inputs_of(family, number), references, strict=True)]


def points(steps: int = STEPS, scales: Sequence[float] = (1.0, 1.0, 1.0), strength: float = 1.0) -> list[Point]:
    """Points of mixed guidance and factors."""
    return [
        replace(point(steps, guidance, strength), ip_adapter=use, true_cfg_scale=scale)
        for guidance, use, scale in zip(GUIDANCES, USES, scales, strict=True)
    ]


def theirs_of(
    model: Flux1Model, items: Sequence[ModelInput], index: int, asked: Point, **arguments: Any
) -> torch.Tensor:
    """The library's latents of one item, in a batch at its point. There, all images of a batch share one picture."""
    pipeline, use = model.pipeline, asked.ip_adapter
    scales = [use.scale * own for own in use.layer_scales] if use.layer_scales else [use.scale] * BLOCKS
    pipeline.set_ip_adapter_scale([scales])
    second = {"negative_prompt": [item.negative_prompt for item in items], "true_cfg_scale": asked.true_cfg_scale}
    latents: torch.Tensor = pipeline(
        prompt=PROMPTS,
        height=64,
        width=96,
        num_inference_steps=STEPS,
        guidance_scale=asked.guidance,
        generator=generators(),
        max_sequence_length=32,
        ip_adapter_image=items[index].references[0],
        output_type="latent",
        **(second if asked.makes_second_pass else {}),
        **arguments,
    ).images
    return latents[index]


def assert_same_bits(model: Flux1Model, items: Sequence[ModelInput], asked: Sequence[Point], **arguments: Any) -> None:
    ours = run(model, items, asked)
    assert torch.isfinite(ours).all()
    plain = run(model, items, [replace(each, ip_adapter=IpAdapterUse(0.0)) for each in asked])
    for index, own in enumerate(asked):
        assert not torch.equal(ours[index], plain[index])
        assert torch.equal(ours[index], theirs_of(model, items, index, own, **arguments))


BITS = pytest.mark.parametrize("optimization", [NONE, HOISTED], ids=["eager", "hoisted"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@BITS
def test_text_to_image(optimization: OptimizationConfig, dtype: str, device: str) -> None:
    assert_same_bits(adapted_model("flux", dtype, optimization, device), items_of("flux"), points())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@BITS
def test_negative_prompts_attend_to_a_black_picture(optimization: OptimizationConfig, dtype: str, device: str) -> None:
    model = adapted_model("flux", dtype, optimization, device)
    assert_same_bits(model, with_negatives(items_of("flux")), points(scales=SCALES))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["flux_img2img", "flux_inpaint", "flux_kontext", "flux_kontext_inpaint"])
def test_other_families(family: str, dtype: str) -> None:
    items = items_of(family)
    names = [name for name in ("image", "mask_image") if items[0].image and (name == "image" or items[0].mask)]
    pictures = {"image": [item.image for item in items], "mask_image": [item.mask for item in items]}
    arguments: dict[str, Any] = {name: pictures[name] for name in names}
    if "kontext" in family:
        references = [item.references[0] for item in items]
        arguments = KONTEXT | (arguments | {"image_reference": references} if names else {"image": references})
    strength = 0.6 if names else 1.0
    own = {"strength": strength} if names else {}
    assert_same_bits(adapted_model(family, dtype), items, points(strength=strength), **arguments, **own)


def test_a_picture_gives_the_latents_of_the_librarys_own_argument() -> None:
    """As users call it: a picture for a single image, and no negative picture."""
    model, item = adapted_model(), with_negatives(items_of("flux"))[0]
    model.pipeline.set_ip_adapter_scale(0.8)
    theirs = model.pipeline(
        prompt=item.prompt,
        negative_prompt=item.negative_prompt,
        true_cfg_scale=2.0,
        ip_adapter_image=item.references[0],
        height=64,
        width=96,
        num_inference_steps=STEPS,
        generator=generators()[:1],
        max_sequence_length=32,
        output_type="latent",
    ).images
    asked = replace(point(STEPS, 3.5), true_cfg_scale=2.0, ip_adapter=IpAdapterUse(0.8))
    assert torch.equal(run(model, [item], [asked]), theirs)


def test_a_scale_of_zero_gives_the_pixels_without_an_ip_adapter() -> None:
    model = adapted_model()
    theirs = [replace(each, ip_adapter=IpAdapterUse(0.0)) for each in points()]
    ours = run(model, items_of("flux"), theirs)
    other = [replace(item, references=items_of("flux")[0].references) for item in items_of("flux")]
    assert torch.equal(ours, run(model, other, theirs))


def test_layer_scales_of_another_number_fail_the_sample() -> None:
    model = adapted_model()
    asked = [replace(point(), ip_adapter=IpAdapterUse(1.0, (1.0,)))] * 3
    with pytest.raises(SampleError, match=r"layer_scales has 1 values, but the model has 2 double blocks"):
        run(model, items_of("flux"), asked)


def test_a_sample_without_a_reference_is_refused() -> None:
    with pytest.raises(SampleError, match="no references"):
        adapted_model().condition(inputs_of("flux"), None)


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("optimization", [HOISTED, FUSED], ids=["two calls", "twice the rows"])
def test_ranks_give_the_latents_of_one(optimization: OptimizationConfig, kind: Any) -> None:
    items, asked = with_negatives(items_of("flux", 2)), points(2, SCALES)[:2]
    models = [adapted_model(optimization=optimization) for _ in range(2)]
    alone = run(adapted_model(optimization=optimization), items, asked)

    def one(collectives: Collectives) -> torch.Tensor:
        model = models[collectives.rank]
        model.enable_context_parallel(collectives, kind)
        return run(model, items, asked)

    first, second = linked(2, one)
    assert float((first - alone).norm() / alone.norm()) < 1e-5
    assert torch.equal(first, second)


@pytest.mark.parametrize("cache", [TAYLORSEER, FIRST_BLOCK], ids=["planned", "by content"])
@pytest.mark.parametrize("optimization", [HOISTED, FUSED], ids=["hoisted", "fused"])
def test_step_caches_skip_blocks(optimization: OptimizationConfig, cache: StepCacheConfig) -> None:
    model = adapted_model(optimization=replace(optimization, step_cache=cache))
    conditionings = model.condition(items_of("flux"), None)
    latents = model.denoise([Job(c, p, 7) for c, p in zip(conditionings, points(6), strict=True)])
    assert torch.isfinite(latents.packed).all()
    assert all(steps < 6 for steps in model.computed_steps(latents))


def test_a_step_cache_that_skips_nothing_changes_no_bit() -> None:
    """The two parts of a step, and single rows of a batch, attend to the same tokens."""
    never = replace(FIRST_BLOCK, threshold=0.0)
    plain, cached = adapted_model(optimization=HOISTED), adapted_model(optimization=replace(HOISTED, step_cache=never))
    assert torch.equal(run(cached, items_of("flux"), points()), run(plain, items_of("flux"), points()))


def test_the_start_of_a_batch_can_be_sent_to_other_ranks() -> None:
    model = adapted_model(optimization=HOISTED)
    conditionings = model.condition(with_negatives(items_of("flux")), None)
    jobs = [Job(c, p, 7) for c, p in zip(conditionings, points(2, SCALES), strict=True)]
    sent = pickle.loads(pickle.dumps(model.begin(jobs)))
    assert torch.equal(model.integrate(sent).packed, model.denoise(jobs).packed)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), SCALES], ids=["one pass", "two passes"])
def test_fused_blocks_stay_within_the_tolerance(scales: Sequence[float], dtype: str, tolerance: float) -> None:
    plain, fused = adapted_model("flux", dtype), adapted_model("flux", dtype, FUSED)
    assert "fused_kernels" in fused.applied_optimizations
    items, asked = with_negatives(items_of("flux")), points(scales=scales)
    ours, theirs = run(fused, items, asked).float(), run(plain, items, asked).float()
    assert float((ours - theirs).norm() / theirs.norm()) < tolerance


def test_fp8_leaves_the_layers_of_the_adapter() -> None:
    model = adapted_model(optimization=replace(FUSED, fp8_linears=True))
    block = model.transformer.transformer_blocks[0]
    assert type(block.attn.processor.to_k_ip[0]) is torch.nn.Linear
    assert type(block.attn.to_out[0]) is not torch.nn.Linear
    plain = run(adapted_model(), items_of("flux"), points())
    assert float((run(model, items_of("flux"), points()) - plain).norm() / plain.norm()) < 0.1


@pytest.mark.gpu
def test_lossless_optimizations_on_a_gpu_stay_within_the_tolerance() -> None:
    plain, fast = adapted_model("flux", "bfloat16", device="cuda"), adapted_model("flux", "bfloat16", GRAPHED, "cuda")
    assert not fast.skipped_optimizations
    items, asked = with_negatives(items_of("flux")), points(scales=SCALES)
    theirs = run(plain, items, asked).float()
    for _ in range(2):  # the second time, the step is replayed
        ours = run(fast, items, asked).float()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2
    other = [replace(each, ip_adapter=IpAdapterUse(0.1)) for each in asked]
    changed = run(fast, items, other).float()  # a replay with other factors
    assert float((changed - run(plain, items, other).float()).norm() / theirs.norm()) < 1e-2


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_stage_waits_for_the_device() -> None:
    model = adapted_model("flux", "bfloat16", GRAPHED, "cuda")

    def make() -> Decoded:
        conditionings = model.condition(with_negatives(items_of("flux")), None)
        asked = zip(conditionings, points(scales=SCALES), SEEDS, strict=True)
        return model.decode(model.denoise([Job(c, p, seed) for c, p, seed in asked]))

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
    model, items = adapted_model("flux", "bfloat16", FUSED), with_negatives(items_of("flux"))
    expected = run(model, items, points(scales=SCALES))
    streams, denoiser = offload(model, plan), model.denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    model.denoiser = HoistedDenoiser(model.transformer, replace(denoiser.options, streams=streams))
    for _ in range(2):
        assert torch.equal(run(model, items, points(scales=SCALES)), expected)
