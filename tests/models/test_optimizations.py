"""Each optimization keeps to its kind: exact ones give the same bits, lossless ones round no worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import attention_dispatch

from fluxexp.config.model_layouts import FLUX_FILL, FLUX_SCHNELL, ModelLayout
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.optimization_kinds import settled
from fluxexp.config.schema import OptimizationConfig, TaylorSeerCacheConfig
from fluxexp.errors import ModelError
from fluxexp.models.base import Decoded, Job
from fluxexp.models.flux1 import modulation
from fluxexp.models.flux1.block_passes import BlockPasses
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.denoiser_options import DenoiserOptions
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.loading.random_weights import random_pipeline
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.models.step_cache.step_caches import make_step_cache
from tests.conftest import Compose
from tests.models.conftest import Load, fill_inputs, point, run, text_inputs
from tests.models.small_layouts import scaled_down

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HOISTED = replace(NONE, hoist_constants=True)
EAGER = [
    replace(NONE, attention_backend="fastest"),
    replace(HOISTED, attention_backend="fastest"),
    replace(HOISTED, modulation_table=True),
    replace(HOISTED, fused_kernels=True),
]
ON_CPU = [
    replace(NONE, onednn_linears=True),
    replace(HOISTED, onednn_linears=True),
    replace(HOISTED, attention_backend="fastest", modulation_table=True, fused_kernels=True, onednn_linears=True),
]
COMPILED = OptimizationConfig(
    hoist_constants=True,
    no_matmul_workspace=False,
    attention_backend="fastest",
    modulation_table=True,
    fused_kernels=False,
    text_encoder_weights=None,
    offload=None,
    onednn_linears=False,
    fp8_linears=False,
    fp8_attention=False,
    compile_blocks=True,
    cuda_graph=False,
    fused_vae=False,
    compile_vae=True,
    vae_tiling=False,
    text_cache=False,
    step_cache=None,
)
LOSSLESS = replace(
    COMPILED, fused_kernels=True, compile_blocks=False, cuda_graph=True, fused_vae=True, compile_vae=False
)
FAST = replace(LOSSLESS, fp8_linears=True)
ROUNDING_LUCK = 1.1
"""Two ways to round differ by luck, in either direction."""
TAYLORSEER = TaylorSeerCacheConfig(name="taylorseer", interval=3, order=1, warmup_steps=1, last_steps=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def latents(model: Flux1Model, steps: int = 4) -> torch.Tensor:
    inputs = fill_inputs() if model.family.paints_masked_region else text_inputs()
    return run(model, inputs, [point(steps, guidance) for guidance in (1.0, 4.0, 30.0)])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative to the reference's norm."""
    assert torch.isfinite(ours).all()
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def random_model(layout: ModelLayout, optimization: OptimizationConfig, device: str, dtype: torch.dtype) -> Flux1Model:
    pipeline = random_pipeline(layout, torch.device(device), dtype)
    model = Flux1Model(pipeline, torch.device(device))
    apply_optimizations(model, optimization, 64)
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny_fill", "tiny_dev"])
def test_hoisting_constants_changes_no_bit(load: Load, name: str, dtype: str, device: str) -> None:
    plain = load(name, dtype, device=device)
    hoisted = load(name, dtype, HOISTED, device=device)
    assert hoisted.applied_optimizations == ["hoist_constants"]
    assert torch.equal(latents(hoisted), latents(plain))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_hoisting_constants_changes_no_bit_without_guidance_or_in_half_precision(dtype: torch.dtype) -> None:
    layout = scaled_down(FLUX_SCHNELL)
    plain, hoisted = (random_model(layout, asked, "cpu", dtype) for asked in (NONE, HOISTED))
    assert torch.equal(latents(hoisted), latents(plain))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("asked", EAGER, ids=str)
def test_lossless_optimizations_stay_within_the_tolerance(
    load: Load, asked: OptimizationConfig, dtype: str, tolerance: float, device: str
) -> None:
    plain, optimized = load("tiny_fill", dtype, device=device), load("tiny_fill", dtype, asked, device=device)
    assert not optimized.skipped_optimizations
    assert distance(latents(optimized), latents(plain)) < tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", [1, 4])
def test_lossless_rounds_no_worse_than_eager_bfloat16(load: Load, steps: int, device: str) -> None:
    """Per image and at few steps, too, where a distance from eager bfloat16 mostly measures eager's own rounding."""
    asked = replace(LOSSLESS, cuda_graph=device == "cuda", fused_vae=False)
    exact = latents(load("tiny_fill", "float32", device=device), steps)
    eager = latents(load("tiny_fill", "bfloat16", device=device), steps)
    lossless = latents(load("tiny_fill", "bfloat16", asked, device=device), steps)
    assert not torch.equal(lossless, eager)
    for number in range(len(exact)):
        eager_error = distance(eager[number], exact[number])
        assert distance(lossless[number], exact[number]) <= ROUNDING_LUCK * eager_error


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attends", [False, True])
def test_fp8_stays_near(load: Load, attends: bool, device: str) -> None:
    if device == "cuda" and attends:
        pytest.importorskip("cudnn")
    asked = replace(FAST, fp8_attention=attends, compile_vae=False, cuda_graph=device == "cuda")
    plain, optimized = (load("tiny_fill", "bfloat16", wanted, device=device) for wanted in (NONE, asked))
    assert ("fp8_attention" in optimized.applied_optimizations) == attends
    assert 1e-3 < distance(latents(optimized), latents(plain)) < 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])  # cuDNN has tf32
def test_a_fused_vae_stays_within_the_tolerance(load: Load, dtype: str, tolerance: float, device: str) -> None:
    plain, fused = (load("tiny_fill", dtype, asked, device=device) for asked in (NONE, replace(NONE, fused_vae=True)))
    assert fused.applied_optimizations == ["fused_vae"]
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(plain.device, plain.dtype)
    with torch.inference_mode():
        encoded, same = (model.vae.encode(pixels).latent_dist.mean for model in (fused, plain))
        decoded, as_before = (model.vae.decode(same, return_dict=False)[0] for model in (fused, plain))
    assert distance(encoded, same) < tolerance
    assert distance(decoded, as_before) < tolerance


@pytest.mark.parametrize("asked", ON_CPU, ids=str)
@pytest.mark.parametrize("name", ["tiny_fill", "tiny_dev"])
def test_onednn_linear_layers_stay_within_the_tolerance(load: Load, name: str, asked: OptimizationConfig) -> None:
    plain, optimized = load(name), load(name, optimization=asked)
    assert "onednn_linears" in optimized.applied_optimizations
    assert distance(latents(optimized), latents(plain)) < 1e-4


def test_onednn_computes_every_linear_layer(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> torch.Tensor:
        raise AssertionError("a linear layer did not use oneDNN")

    model = load("tiny_fill", optimization=ON_CPU[-1])
    expected = latents(model)
    monkeypatch.setattr(torch.nn.functional, "linear", refused)
    monkeypatch.setattr(torch.nn.Linear, "forward", refused)
    assert torch.equal(latents(model), expected)


def test_onednn_is_skipped_unless_the_model_is_float32(load: Load) -> None:
    model = load("tiny_fill", "bfloat16", replace(NONE, onednn_linears=True))
    assert model.applied_optimizations == []
    assert "bfloat16" in model.skipped_optimizations["onednn_linears"]


def test_merged_projections_keep_no_second_copy_of_their_weights(load: Load) -> None:
    plain, fused = load("tiny_fill"), load("tiny_fill", optimization=replace(HOISTED, fused_kernels=True))
    assert fused.transformer.num_parameters() == plain.transformer.num_parameters()
    names = [name for name, _ in fused.transformer.named_parameters()]
    assert any("to_qkv" in name for name in names)
    assert not any("to_q." in name or "add_q_proj" in name for name in names)


def test_a_modulation_table_is_recomputed_for_later_steps(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modulation, "TABLE_ROWS", 7)  # two steps of a batch of three
    plain, tabled = load("tiny_fill"), load("tiny_fill", optimization=replace(HOISTED, modulation_table=True))
    assert distance(latents(tabled, 5), latents(plain, 5)) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_all_lossless_optimizations_together_compiled_on_a_cpu() -> None:
    layout = scaled_down(FLUX_FILL)
    everything = replace(COMPILED, onednn_linears=True)
    plain, optimized = (random_model(layout, asked, "cpu", torch.float32) for asked in (NONE, everything))
    assert not optimized.skipped_optimizations
    assert distance(latents(optimized, 2), latents(plain, 2)) < 1e-4


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_full_size_model_keeps_the_promise_of_each_kind() -> None:
    """1024 tokens of a full-size model: eager has the library's bits, lossless stays near."""
    device, pipeline = torch.device("cuda"), random_pipeline(FLUX_FILL, torch.device("cuda"), torch.bfloat16)
    theirs = pipeline(
        prompt="a large red star",
        image=fill_inputs(512, 512, 1)[0].image,
        mask_image=fill_inputs(512, 512, 1)[0].mask,
        height=512,
        width=512,
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=[torch.Generator("cpu").manual_seed(11)],
        output_type="latent",
    ).images
    found = {}
    fast = replace(FAST, fused_vae=False)  # the VAE is fused by then
    for name, asked in (("none", NONE), ("hoisted", HOISTED), ("lossless", LOSSLESS), ("fast", fast)):
        pipeline.transformer.reset_attention_backend()
        model = Flux1Model(pipeline, device)
        apply_optimizations(model, asked, 1024)  # fp8 comes last, as weights stay quantized
        assert not model.skipped_optimizations
        found[name] = run(model, fill_inputs(512, 512, 1), [point(4)])
    assert torch.equal(found["none"], theirs)
    assert torch.equal(found["hoisted"], theirs)
    for name in ("lossless", "fast"):
        print(f"relative distance of {name} latents:", distance(found[name], theirs))
    assert distance(found["lossless"], theirs) < 1e-2
    assert distance(found["fast"], theirs) < 0.1


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("asked", [HOISTED, LOSSLESS], ids=["hoisted", "lossless"])
def test_no_stage_waits_for_the_device(load: Load, asked: OptimizationConfig) -> None:
    model = load("tiny_fill", "bfloat16", replace(asked, compile_vae=False), device="cuda")

    def make() -> Decoded:
        conditionings = model.condition(fill_inputs(), None)
        jobs = [Job(conditioning, point(), seed) for seed, conditioning in enumerate(conditionings)]
        return model.decode(model.denoise(jobs))

    expected = make().images()
    make().images()  # the second time, the step is captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoded = make()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert decoded.images() == expected


def test_what_cannot_be_applied_is_skipped_with_its_reason(load: Load) -> None:
    model = load("tiny_fill", optimization=replace(NONE, modulation_table=True, vae_tiling=True))
    assert model.applied_optimizations == ["vae_tiling=128"]
    assert model.skipped_optimizations == {"modulation_table": "it needs hoist_constants"}


def test_the_denoiser_is_built_once(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[DenoiserOptions] = []
    build = BlockPasses.__init__

    def counted(passes: BlockPasses, transformer: object, options: DenoiserOptions, layout: None) -> None:
        built.append(options)
        build(passes, transformer, options, layout)

    monkeypatch.setattr(BlockPasses, "__init__", counted)
    load("tiny_fill", optimization=ON_CPU[2])
    assert [(options.is_fused, options.has_modulation_table) for options in built] == [(True, True)]


def test_blocks_are_compiled_when_steps_are_captured_too(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **_: compiled.append(block))
    options = DenoiserOptions(is_compiled=True, has_cuda_graph=True)
    passes = HoistedDenoiser(load("tiny_fill").transformer, options).passes
    assert compiled == [*passes.doubles, *passes.singles]
    assert isinstance(passes.velocity_at, GraphedFunction)


def test_another_step_cache_keeps_blocks_and_another_context_does_not(load: Load) -> None:
    denoiser = load("tiny_fill", optimization=HOISTED).denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    cache = make_step_cache(TAYLORSEER)
    assert denoiser.with_step_cache(cache).passes is denoiser.passes, "its CUDA graphs are captured once"
    assert denoiser.with_step_cache(cache).options == replace(denoiser.options, step_cache=cache)
    assert denoiser.with_context(None).passes is not denoiser.passes


def test_a_replaced_denoiser_frees_its_cuda_graphs(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[object] = []
    monkeypatch.setattr(BlockPasses, "free_memory", lambda passes: freed.append(passes))
    denoiser = load("tiny_fill", optimization=HOISTED).denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    denoiser.with_context(None)
    assert freed == [denoiser.passes]


@pytest.mark.parametrize(
    ("asked", "name", "reason"),
    [
        ({"modulation_table": True}, "modulation_table", "it needs hoist_constants"),
        ({"fused_kernels": True}, "fused_kernels", "it needs hoist_constants"),
        ({"cuda_graph": True}, "cuda_graph", "it needs hoist_constants"),
        ({"vae_tiling": True, "compile_vae": True}, "compile_vae", "vae_tiling decodes tiles of many shapes"),
        ({"fused_vae": True, "compile_vae": True}, "compile_vae", "fused_vae leaves nothing to compile"),
        (
            {"hoist_constants": True, "fused_kernels": True, "compile_blocks": True},
            "compile_blocks",
            "fused_kernels leave nothing to compile",
        ),
    ],
)
def test_declared_needs_and_conflicts_are_the_reasons_to_skip(
    load: Load, asked: dict[str, Any], name: str, reason: str
) -> None:
    assert load("tiny_fill", optimization=replace(NONE, **asked)).skipped_optimizations == {name: reason}


@pytest.mark.parametrize("name", ["fp8_linears", "fp8_attention"])
def test_an_approximate_optimization_without_what_it_needs_is_an_error(load: Load, name: str) -> None:
    asked: dict[str, Any] = {name: True}
    with pytest.raises(ModelError, match=f"{name} cannot be applied: it needs"):
        load("tiny_fill", "bfloat16", replace(HOISTED, **asked))


def test_auto_is_settled_by_the_device(compose: Compose) -> None:
    auto = replace(
        compose(),
        optimization=replace(NONE, hoist_constants="auto", onednn_linears="auto", compile_blocks="auto"),
    )
    assert settled(auto, has_gpu=True).optimization == replace(HOISTED, compile_blocks=True)
    assert settled(auto, has_gpu=False).optimization == replace(HOISTED, onednn_linears=True)
    assert compose("optimization=auto").optimization == ON_CPU[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_equal_blocks_share_compiled_code_and_each_new_size_compiles_once() -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    layout = scaled_down(FLUX_FILL)
    layout = replace(layout, transformer={**layout.transformer, "num_layers": 2, "num_single_layers": 2})
    torch._dynamo.reset()
    model = random_model(layout, HOISTED, "cpu", torch.float32)
    assert isinstance(model.denoiser, HoistedDenoiser)
    for block in (*model.denoiser.passes.doubles, *model.denoiser.passes.singles):
        block.compile(backend=backend, fullgraph=True, dynamic=False)
    for size, number in ((64, 2), (128, 4), (64, 4)):
        run(model, fill_inputs(size, size, 1), [point(2)])
        assert len(compiled) == number


def test_the_attention_backend_of_one_model_is_not_that_of_the_next(load: Load) -> None:
    """A sweep over optimizations loads several models in one process. diffusers makes the last backend the default."""
    before, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    model = load("tiny_fill", optimization=replace(NONE, attention_backend="_native_math"))
    assert model.applied_optimizations == ["attention_backend=_native_math"]
    assert attention_dispatch._AttentionBackendRegistry.get_active_backend()[0] == before
    backends = {p._attention_backend for p in model.transformer.attn_processors.values()}
    assert backends == {attention_dispatch.AttentionBackendName._NATIVE_MATH}
