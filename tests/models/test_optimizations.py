"""Each optimization within its kind: exact ones give the same bits, lossless ones latents within a hundredth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from fluxexp.config.optimization_kinds import KINDS, NONE, settled
from fluxexp.config.schema import OptimizationConfig
from fluxexp.models.base import Decoded, Job
from fluxexp.models.flux1 import modulation
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.loading.model_layouts import FLUX_FILL, FLUX_SCHNELL, ModelLayout, scaled_down
from fluxexp.models.loading.random_weights import random_pipeline
from fluxexp.models.optimizations import apply_optimizations
from tests.conftest import Compose
from tests.models.conftest import Load, fill_inputs, point, run, text_inputs

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


def test_every_option_has_a_kind() -> None:
    assert list(KINDS) == [field.name for field in fields(OptimizationConfig)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny_fill", "tiny_dev"])
def test_hoisting_constants_changes_no_bit(load: Load, name: str, dtype: str, device: str) -> None:
    plain = load(name, dtype, device=device)
    hoisted = load(name, dtype, HOISTED, device=device)
    assert hoisted.applied_optimizations == ["hoist_constants"]
    assert torch.equal(latents(hoisted), latents(plain))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_hoisting_constants_changes_no_bit_without_guidance_nor_in_half_precision(dtype: torch.dtype) -> None:
    layout = scaled_down(FLUX_SCHNELL)
    plain, hoisted = (random_model(layout, asked, "cpu", dtype) for asked in (NONE, HOISTED))
    assert torch.equal(latents(hoisted), latents(plain))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("asked", EAGER, ids=str)
def test_other_kernels_stay_within_a_hundredth(
    load: Load, asked: OptimizationConfig, dtype: str, tolerance: float, device: str
) -> None:
    plain, optimized = load("tiny_fill", dtype, device=device), load("tiny_fill", dtype, asked, device=device)
    assert not optimized.skipped_optimizations
    assert distance(latents(optimized), latents(plain)) < tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attends", [False, True])
def test_eight_bits_stay_near(load: Load, attends: bool, device: str) -> None:
    if device == "cuda" and attends:
        pytest.importorskip("cudnn")
    asked = replace(FAST, fp8_attention=attends, compile_vae=False, cuda_graph=device == "cuda")
    plain, optimized = (load("tiny_fill", "bfloat16", wanted, device=device) for wanted in (NONE, asked))
    assert ("fp8_attention" in optimized.applied_optimizations) == attends
    assert 1e-3 < distance(latents(optimized), latents(plain)) < 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])  # cuDNN has tf32
def test_a_fused_vae_encodes_and_decodes_alike(load: Load, dtype: str, tolerance: float, device: str) -> None:
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
def test_linear_layers_by_onednn_stay_within_a_hundredth(load: Load, name: str, asked: OptimizationConfig) -> None:
    plain, optimized = load(name), load(name, optimization=asked)
    assert "onednn_linears" in optimized.applied_optimizations
    assert distance(latents(optimized), latents(plain)) < 1e-4


def test_onednn_computes_every_linear_layer(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> torch.Tensor:
        raise AssertionError("a linear layer went another way")

    model = load("tiny_fill", optimization=ON_CPU[-1])
    expected = latents(model)
    monkeypatch.setattr(torch.nn.functional, "linear", refused)
    monkeypatch.setattr(torch.nn.Linear, "forward", refused)
    assert torch.equal(latents(model), expected)


def test_onednn_is_for_float32_on_a_cpu(load: Load) -> None:
    model = load("tiny_fill", "bfloat16", replace(NONE, onednn_linears=True))
    assert model.applied_optimizations == []
    assert "bfloat16" in model.skipped_optimizations["onednn_linears"]


def test_merged_projections_have_their_weights_once(load: Load) -> None:
    plain, fused = load("tiny_fill"), load("tiny_fill", optimization=replace(HOISTED, fused_kernels=True))
    assert fused.transformer.num_parameters() == plain.transformer.num_parameters()
    names = [name for name, _ in fused.transformer.named_parameters()]
    assert any("to_qkv" in name for name in names)
    assert not any("to_q." in name or "add_q_proj" in name for name in names)


def test_a_table_is_made_anew_when_its_steps_are_over(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modulation, "TABLE_ROWS", 7)  # of batches of three: two steps
    plain, tabled = load("tiny_fill"), load("tiny_fill", optimization=replace(HOISTED, modulation_table=True))
    assert distance(latents(tabled, 5), latents(plain, 5)) < 1e-4


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_all_that_is_lossless_together_compiled_on_a_cpu() -> None:
    layout = scaled_down(FLUX_FILL)
    everything = replace(COMPILED, onednn_linears=True)
    plain, optimized = (random_model(layout, asked, "cpu", torch.float32) for asked in (NONE, everything))
    assert not optimized.skipped_optimizations
    assert distance(latents(optimized, 2), latents(plain, 2)) < 1e-4


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_at_full_size_each_kind_keeps_its_promise() -> None:
    """1024 tokens of a full-size model: eager has the library's bits, lossless stays within a hundredth."""
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
    fast = replace(FAST, fused_vae=False)  # it is fused by then
    for name, asked in (("none", NONE), ("hoisted", HOISTED), ("lossless", LOSSLESS), ("fast", fast)):
        pipeline.transformer.reset_attention_backend()
        model = Flux1Model(pipeline, device)
        apply_optimizations(model, asked, 1024)  # eight bits last: they stay
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
    make().images()  # the second time a step is recorded
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoded = make()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert decoded.images() == expected


def test_what_cannot_be_done_is_left_out_and_said(load: Load) -> None:
    model = load("tiny_fill", optimization=replace(NONE, modulation_table=True, vae_tiling=True))
    assert model.applied_optimizations == ["vae_tiling=128"]
    assert model.skipped_optimizations == {"modulation_table": "it needs hoist_constants"}


def test_auto_is_settled_by_the_device(compose: Compose) -> None:
    auto = replace(
        compose(),
        optimization=replace(NONE, hoist_constants="auto", onednn_linears="auto", compile_blocks="auto"),
    )
    assert settled(auto, has_gpu=True).optimization == replace(HOISTED, compile_blocks=True)
    assert settled(auto, has_gpu=False).optimization == replace(HOISTED, onednn_linears=True)
    assert compose("optimization=auto").optimization == ON_CPU[-1]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_blocks_alike_share_their_code_and_a_new_size_costs_one_compilation_more() -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    layout = scaled_down(FLUX_FILL)
    layout = replace(layout, transformer={**layout.transformer, "num_layers": 2, "num_single_layers": 2})
    torch._dynamo.reset()
    model = random_model(layout, HOISTED, "cpu", torch.float32)
    assert isinstance(model.denoiser, HoistedDenoiser)
    for block in (*model.denoiser.doubles, *model.denoiser.singles):
        block.compile(backend=backend, fullgraph=True, dynamic=False)
    for size, number in ((64, 2), (128, 4), (64, 4)):
        run(model, fill_inputs(size, size, 1), [point(2)])
        assert len(compiled) == number
