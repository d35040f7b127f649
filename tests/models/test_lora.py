"""LoRAs: the pixels of diffusers, and exactly the loaded weights after them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from fluxexp.config.model_layouts import FLUX_DEV
from fluxexp.config.model_paths import model_directory
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import OptimizationConfig
from fluxexp.errors import SampleError
from fluxexp.models.base import PromptPair
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.loading.random_weights import pipeline_without_weights
from fluxexp.models.lora.lora_tensors import read_lora
from fluxexp.models.optimizations import apply_optimizations
from fluxexp.records import LoraUse
from tests import lora_files
from tests.models.conftest import Load, fill_inputs, inputs_of, point, run, text_inputs
from tests.models.small_layouts import scaled_down
from tests.models.test_pipelines import model_of

HOISTED = replace(NONE, hoist_constants=True)
FUSED = replace(HOISTED, modulation_table=True, fused_kernels=True)
FP8 = replace(FUSED, fp8_linears=True)
FORMATS: dict[str, Callable[[Path], str]] = {
    "peft with alphas": lambda path: lora_files.peft_with(path, alpha=8.0),
    "peft with biases": lambda path: lora_files.peft_with(path, bias=True),
    "kohya": lora_files.kohya,
    "kohya with CLIP": lambda path: lora_files.kohya(path, text=True),
    "ComfyUI": lora_files.comfy,
    "XLabs": lora_files.xlabs,
}


def latents(model: Flux1Model, *uses: LoraUse) -> torch.Tensor:
    inputs = fill_inputs() if model.family.paints_masked_region else text_inputs()
    wanted = [replace(point(2, guidance), lora=uses) for guidance in (1.0, 4.0, 30.0)]
    return run(model, [replace(item, lora=uses) for item in inputs], wanted)


def weights(model: Flux1Model) -> dict[str, torch.Tensor]:
    parts = {"transformer": model.transformer, "clip": model.pipeline.text_encoder}
    return {f"{part}.{name}": t.clone() for part, module in parts.items() for name, t in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def library(load: Load, name: str, uses: Sequence[LoraUse], *, is_fused: bool, **options: Any) -> Flux1Model:
    """A model with the LoRAs loaded by diffusers, and merged by it or not."""
    pytest.importorskip("peft", reason="diffusers needs peft to load LoRAs: pip install 'fluxexp[dev]'")
    model = load(name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is another LoRA already
        for number, use in enumerate(uses):
            model.pipeline.load_lora_weights(use.path, adapter_name=f"lora_{number}")
    model.pipeline.set_adapters([f"lora_{n}" for n in range(len(uses))], [use.scale for use in uses])
    if is_fused:
        model.pipeline.fuse_lora(adapter_names=[f"lora_{n}" for n in range(len(uses))])
    return model


@pytest.mark.parametrize("name", ["tiny_dev", "tiny_fill"])
def test_a_lora_has_the_bits_of_diffusers_when_it_merges_one(load: Load, name: str, tmp_path: Path) -> None:
    model = load(name)
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", model.transformer), 0.5)
    ours = latents(model, use)
    assert not torch.equal(ours, latents(model))
    torch.testing.assert_close(ours, latents(library(load, name, [use], is_fused=True)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_latents_of_diffusers(load: Load, kind: str, tmp_path: Path) -> None:
    use = LoraUse(FORMATS[kind](tmp_path / "a.safetensors"), 0.8)
    model = load("tiny_dev")
    ours = latents(model, use)
    theirs = latents(library(load, "tiny_dev", [use], is_fused=False))
    base = latents(model)
    assert (ours - base).abs().max() > 100 * (ours - theirs).abs().max()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_several_loras_add_up(load: Load, tmp_path: Path) -> None:
    model = load("tiny_dev")
    uses = [
        LoraUse(lora_files.peft(tmp_path / "a.safetensors", model.transformer, 1), 0.4),
        LoraUse(lora_files.kohya(tmp_path / "b.safetensors", 2), -0.7),
    ]
    theirs = latents(library(load, "tiny_dev", uses, is_fused=False))
    torch.testing.assert_close(latents(model, *uses), theirs, rtol=1e-3, atol=1e-4)


def test_in_bfloat16_a_lora_rounds_no_worse_than_in_diffusers(load: Load, tmp_path: Path) -> None:
    exact = load("tiny_dev")
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", exact.transformer), 0.5)
    base = exact.transformer.state_dict()
    ours, theirs = load("tiny_dev", dtype="bfloat16"), library(load, "tiny_dev", [use], is_fused=True, dtype="bfloat16")
    ours.loras.apply("transformer", [use])
    exact.loras.apply("transformer", [use])
    own, other = ours.transformer.state_dict(), theirs.transformer.state_dict()
    for name in base:
        if name.endswith("weight") and (wrapped := name.replace(".weight", ".base_layer.weight")) in other:
            expected = base[name]
            error, their_error = ((x.float() - expected).square().mean() for x in (own[name], other[wrapped]))
            assert error <= their_error


def test_a_lora_for_dev_is_padded_with_zeros_on_fill(load: Load, tmp_path: Path) -> None:
    dev, fill = load("tiny_dev"), load("tiny_fill")
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", dev.transformer, only="x_embedder"), 1.0)
    before = fill.transformer.x_embedder.weight.clone()
    ours = latents(fill, use)
    changed = fill.transformer.x_embedder.weight != before
    assert changed[:, : dev.transformer.x_embedder.in_features].any()
    assert not changed[:, dev.transformer.x_embedder.in_features :].any()
    torch.testing.assert_close(ours, latents(library(load, "tiny_fill", [use], is_fused=False)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float32, 0.125)], ids=["FLUX.1-Turbo-Alpha", "Hyper-FLUX.1-dev"]
)
def test_an_8_step_lora_for_dev_works_on_fill(dtype: torch.dtype, scale: float, tmp_path: Path) -> None:
    dev = pipeline_without_weights(scaled_down(FLUX_DEV), torch.float32)
    use = LoraUse(lora_files.distilled(tmp_path / "8steps.safetensors", dev.transformer, dtype), scale)
    inputs, asked = fill_inputs(), [replace(point(8, guidance), lora=(use,)) for guidance in (3.5, 10.0, 30.0)]
    ours, base = (run(model_of("flux_fill"), inputs, points) for points in (asked, [point(8, 3.5)] * 3))
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours[0], base[0])
    fast = run(model_of("flux_fill", optimization=FUSED), inputs, asked)
    torch.testing.assert_close(fast, ours, rtol=1e-3, atol=1e-3)
    pytest.importorskip("peft", reason="diffusers needs peft to load LoRAs: pip install 'fluxexp[dev]'")
    theirs = model_of("flux_fill")
    theirs.pipeline.load_lora_weights(use.path)
    theirs.pipeline.fuse_lora(lora_scale=scale)
    expected = run(theirs, inputs, [replace(each, lora=()) for each in asked])
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("optimization", [NONE, HOISTED, FUSED, replace(FUSED, onednn_linears=True)], ids=str)
def test_optimizations_see_the_merged_weights(load: Load, optimization: OptimizationConfig, tmp_path: Path) -> None:
    plain, model = load("tiny_fill"), load("tiny_fill", optimization=optimization)
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", plain.transformer), 0.5)
    loaded = weights(model)
    torch.testing.assert_close(latents(model, use), latents(plain, use), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(latents(model), latents(plain), rtol=1e-3, atol=1e-3)
    assert equal(weights(model), loaded)


def test_fp8_weights_are_quantized_again_from_the_original(load: Load, tmp_path: Path) -> None:
    merged_first = load("tiny_dev", dtype="bfloat16")
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", merged_first.transformer), 0.5)
    merged_first.loras.apply("transformer", [use])
    apply_optimizations(merged_first, FP8, 128)
    merged_later = load("tiny_dev", dtype="bfloat16")
    merged_later.loras.keeps_quantized = True
    apply_optimizations(merged_later, FP8, 128)
    loaded = weights(merged_later)
    merged_later.loras.apply("transformer", [use])
    assert equal(weights(merged_later), weights(merged_first))
    merged_later.loras.restore()
    assert equal(weights(merged_later), loaded)


def test_fp8_weights_without_their_original_are_refused(load: Load, tmp_path: Path) -> None:
    model = load("tiny_dev", dtype="bfloat16", optimization=FP8)
    path = lora_files.peft_with(tmp_path / "a.safetensors")
    loaded = weights(model)
    with pytest.raises(SampleError, match=r"fp8_linears=false"):
        model.loras.apply("transformer", [LoraUse(path, 1.0)])
    assert equal(weights(model), loaded)


def test_norms_of_a_control_lora_are_replaced_and_restored(load: Load, tmp_path: Path) -> None:
    model = load("tiny_dev")
    name = "transformer_blocks.0.attn.norm_q.weight"
    value = torch.linspace(0.5, 1.5, 32)
    path = lora_files.peft_with(tmp_path / "a.safetensors", more={f"transformer.{name}": value})
    loaded = weights(model)
    model.loras.apply("transformer", [LoraUse(path, 0.5)])
    assert torch.equal(model.transformer.get_parameter(name), value)
    model.loras.restore()
    assert equal(weights(model), loaded)


def widened(load: Load, **options: Any) -> Flux1Model:
    return load("tiny_dev", family="flux_control", **options)


def control_latents(model: Flux1Model, *uses: LoraUse) -> torch.Tensor:
    inputs = [replace(item, lora=uses) for item in inputs_of("flux_control")]
    return run(model, inputs, [replace(point(2, guidance), lora=uses) for guidance in (1.0, 4.0, 30.0)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_control_lora_widens_a_text_to_image_model_as_in_diffusers(load: Load, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="diffusers needs peft to load LoRAs: pip install 'fluxexp[dev]'")
    model = widened(load, dtype=dtype)
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", model.transformer), 1.0)
    directory = str(model_directory("embedded:tiny_dev"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this pipeline has no image encoder
        pipeline: Any = FluxControlPipeline.from_pretrained(directory, dtype=getattr(torch, dtype))
    pipeline.load_lora_weights(use.path)
    theirs = Flux1Model(pipeline, torch.device("cpu"))
    assert theirs.family.name == model.family.name == "flux_control"
    assert pipeline.transformer.config.in_channels == model.transformer.config.in_channels == 128
    off = replace(use, scale=0.0)
    pipeline.set_adapters(["default_0"], [0.0])
    torch.testing.assert_close(control_latents(model, off), control_latents(theirs), rtol=0, atol=0)
    pipeline.set_adapters(["default_0"], [1.0])
    pipeline.fuse_lora()
    ours, expected = control_latents(model, use), control_latents(theirs)
    tolerance = 0 if dtype == "float32" else 0.05  # diffusers multiplies the factors in bfloat16
    assert not torch.equal(ours, control_latents(model, off))
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("optimization", [HOISTED, FUSED], ids=str)
def test_optimizations_work_with_a_widened_model(load: Load, optimization: OptimizationConfig, tmp_path: Path) -> None:
    plain, model = widened(load), widened(load, optimization=optimization)
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", plain.transformer), 0.5)
    torch.testing.assert_close(control_latents(model, use), control_latents(plain, use), rtol=1e-3, atol=1e-3)


def test_a_widened_model_without_a_control_lora_is_a_failed_sample(load: Load, tmp_path: Path) -> None:
    style = LoraUse(lora_files.peft_with(tmp_path / "style.safetensors"), 1.0)
    for uses in ((), (style,)):
        with pytest.raises(SampleError, match="no Control LoRA"):
            control_latents(widened(load), *uses)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_after_any_changes_the_weights_are_those_of_a_new_model(
    load: Load, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("loras")
    optimization, dtype = data.draw(st.sampled_from([NONE, FUSED])), data.draw(st.sampled_from(["float32", "bfloat16"]))
    model = load("tiny_dev", dtype=dtype, optimization=optimization)
    fresh = weights(model)
    files = [
        lora_files.kohya(folder / "a.safetensors", 1, text=True),
        lora_files.peft_with(folder / "b.safetensors", 2, bias=True),
        lora_files.xlabs(folder / "c.safetensors", 3),
    ]
    use = st.builds(LoraUse, st.sampled_from(files), st.sampled_from([0.0, 0.3, -1.0, 2.0]))
    sets = data.draw(st.lists(st.lists(use, max_size=3), min_size=1, max_size=4))
    for uses in sets:
        for component in ("transformer", "text_encoder"):
            model.loras.apply(component, uses)
    once = load("tiny_dev", dtype=dtype, optimization=optimization)
    for component in ("transformer", "text_encoder"):
        once.loras.apply(component, sets[-1])
    assert equal(weights(model), weights(once))  # the way to a set of LoRAs does not matter
    model.loras.restore()
    assert equal(weights(model), fresh)


def test_changes_keep_the_addresses_of_weights(load: Load, tmp_path: Path) -> None:
    """CUDA graphs hold them."""
    model = load("tiny_dev", optimization=FUSED)
    use = LoraUse(lora_files.kohya(tmp_path / "a.safetensors"), 1.0)
    places = {name: tensor.data_ptr() for name, tensor in model.transformer.state_dict().items()}
    model.loras.apply("transformer", [use])
    assert {name: tensor.data_ptr() for name, tensor in model.transformer.state_dict().items()} == places


def test_the_config_in_the_header_gives_the_scale(tmp_path: Path) -> None:
    config = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_k": 3}}
    tensors = {
        f"transformer.transformer_blocks.0.attn.{name}.{part}.weight": torch.ones(shape)
        for name in ("to_q", "to_k")
        for part, shape in (("lora_A", (4, 160)), ("lora_B", (160, 4)))
    }
    path = lora_files.save(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": json.dumps(config)})
    layers = read_lora(path).layers
    assert layers["transformer.transformer_blocks.0.attn.to_q"].scale == 2.0
    assert layers["transformer.transformer_blocks.0.attn.to_k"].scale == 0.75


def test_a_control_lora_of_black_forest_labs_is_read(tmp_path: Path) -> None:
    tensors = read_lora(lora_files.bfl_control(tmp_path / "a.safetensors"))
    assert len(tensors.layers) == 19 * 14 + 38 * 6 + 10
    assert len(tensors.norms) == 19 * 4 + 38 * 2
    assert tensors.layers["transformer.single_transformer_blocks.7.proj_mlp"].up.shape == (12288, 2)


def test_a_lora_that_does_not_fit_fails_its_sample_and_changes_nothing(load: Load, tmp_path: Path) -> None:
    model = load("tiny_dev")
    tensors = {
        "transformer.transformer_blocks.9.attn.to_q.lora_A.weight": torch.ones(4, 160),
        "transformer.transformer_blocks.9.attn.to_q.lora_B.weight": torch.ones(160, 4),
    }
    path = lora_files.save(tmp_path / "a.safetensors", tensors)
    loaded = weights(model)
    with pytest.raises(SampleError, match=r"has no layer transformer\.transformer_blocks\.9\.attn\.to_q"):
        model.loras.apply("transformer", [LoraUse(path, 1.0)])
    assert equal(weights(model), loaded)


@pytest.mark.parametrize("optimization", [NONE, HOISTED, replace(HOISTED, modulation_table=True)], ids=range(3))
@pytest.mark.parametrize("name", ["tiny_dev", "tiny_fill"])
def test_a_batch_can_mix_loras(load: Load, name: str, optimization: OptimizationConfig, tmp_path: Path) -> None:
    """Each image is that of a batch in which all images have its LoRAs, merged."""
    merged, mixed = load(name), load(name, optimization=optimization)
    mixed.mixes_loras = True
    one = LoraUse(lora_files.peft(tmp_path / "a.safetensors", load("tiny_dev").transformer), 0.5)
    two = LoraUse(lora_files.kohya(tmp_path / "b.safetensors", 2, text=True), -0.7)
    three = LoraUse(lora_files.peft_with(tmp_path / "c.safetensors", 3, bias=True), 1.0)
    rows: list[tuple[LoraUse, ...]] = [(), (one, three), (two,)]
    inputs = fill_inputs() if mixed.family.paints_masked_region else text_inputs()
    loaded = weights(mixed)
    with_rows = [replace(item, lora=lora) for item, lora in zip(inputs, rows, strict=True)]
    points = [replace(point(2, guidance), lora=lora) for guidance, lora in zip((1.0, 4.0, 30.0), rows, strict=True)]
    ours = run(mixed, with_rows, points)
    for number, lora in enumerate(rows):
        torch.testing.assert_close(ours[number], latents(merged, *lora)[number], rtol=1e-3, atol=1e-3)
    mixed.loras.restore()
    assert equal(weights(mixed), loaded)


@pytest.mark.parametrize("optimization", [NONE, HOISTED, replace(HOISTED, modulation_table=True)], ids=range(3))
def test_a_batch_with_a_second_pass_can_mix_loras(load: Load, optimization: OptimizationConfig, tmp_path: Path) -> None:
    """Both passes of an image have its LoRAs, in two calls or as rows of one. CLIP reads both prompts with them."""
    merged, mixed = load("tiny_dev"), load("tiny_dev", optimization=optimization)
    mixed.mixes_loras = True
    one = LoraUse(lora_files.peft(tmp_path / "a.safetensors", merged.transformer), 0.5)
    two = LoraUse(lora_files.kohya(tmp_path / "b.safetensors", 2, text=True), -0.7)
    rows: list[tuple[LoraUse, ...]] = [(), (one, two), (two,)]
    inputs = [
        replace(item, negative_prompt=negative, prompt=PromptPair(str(item.prompt), "a green cross"))
        for item, negative in zip(text_inputs(), ["a blue square", "", "blurry"], strict=True)
    ]
    points = [replace(point(2, guidance), true_cfg_scale=3.0) for guidance in (1.0, 4.0, 30.0)]

    def made(model: Flux1Model, loras: Sequence[tuple[LoraUse, ...]]) -> torch.Tensor:
        own = [replace(item, lora=lora) for item, lora in zip(inputs, loras, strict=True)]
        return run(model, own, [replace(each, lora=lora) for each, lora in zip(points, loras, strict=True)])

    ours = made(mixed, rows)
    for number, lora in enumerate(rows):
        torch.testing.assert_close(ours[number], made(merged, [lora] * 3)[number], rtol=1e-3, atol=1e-3)


def test_a_lora_changes_how_clip_reads_a_negative_prompt(load: Load, tmp_path: Path) -> None:
    model = load("tiny_dev")
    lora = (LoraUse(lora_files.kohya(tmp_path / "a.safetensors", 2, text=True), 1.0),)
    plain = replace(text_inputs()[0], negative_prompt="a blue square")
    one, other = model.condition([plain, replace(plain, lora=lora)], None)
    (alone,) = model.condition([replace(plain, prompt="a blue square", negative_prompt=None, lora=lora)], None)
    assert one.negative is not None
    assert other.negative is not None
    assert torch.equal(one.negative[0], other.negative[0])  # a LoRA never changes T5
    assert not torch.equal(one.negative[1], other.negative[1])
    assert torch.equal(other.negative[1], alone.pooled_embeds)


def test_optimizations_that_bypass_layers_are_left_out_if_loras_are_mixed(load: Load) -> None:
    model = load("tiny_dev")
    model.mixes_loras = True
    apply_optimizations(model, FUSED, 128)
    assert "lora.mixing=true" in model.skipped_optimizations["fused_kernels"]
    assert "modulation_table" in model.applied_optimizations


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_lora_compiles_nothing_again(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = load("tiny_dev", optimization=replace(HOISTED, compile_blocks=True))
    if "compile_blocks" not in model.applied_optimizations:
        pytest.skip(model.skipped_optimizations["compile_blocks"])
    plain = load("tiny_dev")
    use = LoraUse(lora_files.peft(tmp_path / "a.safetensors", plain.transformer), 0.5)
    before = latents(model)
    compiled = dict(counters["stats"])
    torch.testing.assert_close(latents(model, use), latents(plain, use), rtol=1e-3, atol=1e-3)
    assert torch.equal(latents(model), before)
    assert dict(counters["stats"]) == compiled
