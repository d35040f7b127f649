"""Checkpoints in single files: their layouts, their formats, and the images that they make."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from huggingface_hub import constants
from safetensors.torch import save_file

from fluxexp.config import RunConfig, check, checkpoint_files, fingerprint, stored_weights
from fluxexp.config.bfl_names import flux_pieces
from fluxexp.config.component_checks import WEIGHT_COMPONENTS
from fluxexp.config.gguf_headers import gguf_tensors
from fluxexp.config.model_digest import model_digest
from fluxexp.config.model_layouts import FLUX_FILL
from fluxexp.config.model_pinning import pinned
from fluxexp.config.schema import NO_FILES, FluxModelConfig, OptimizationConfig
from fluxexp.config.weight_headers import StoredTensor, read_json
from fluxexp.errors import ConfigError, ModelError
from fluxexp.models.kernels.fp8_linear import Fp8Linear
from fluxexp.models.kernels.merged_projections import merge_projections
from fluxexp.models.loading.pipeline_loader import load_flux
from fluxexp.models.loading.stored_tensors import open_tensors
from fluxexp.models.text.text_cache import text_identity
from fluxexp.records import LoraUse
from tests import lora_files
from tests.cases import checkpoint_files as files
from tests.cases.model_directories import (
    LFS_POINTER,
    Tensors,
    change_json,
    copy_of_fill,
    embedded,
    make_hub_cache,
    weights_of,
    without,
)
from tests.models.conftest import NO_OPTIMIZATION, fill_inputs, point, run
from tests.program import Program

Compose = Callable[..., RunConfig]
CPU = torch.device("cpu")
BASE = "embedded:tiny_fill"


def config(path: Path | str, base: str | None = BASE, dtype: str = "float32", **given: Any) -> FluxModelConfig:
    return FluxModelConfig(
        family="flux_fill",
        name="mine",
        path=str(path),
        base=base,
        files=replace(NO_FILES, **{name: str(file) for name, file in given.items()}),
        revision=None,
        variant=None,
        sha256=None,
        weights="pretrained",
        layout=None,
        dtype=dtype,  # type: ignore[arg-type]
        resolution=128,
    )


def latents(model: FluxModelConfig, optimization: OptimizationConfig = NO_OPTIMIZATION) -> torch.Tensor:
    return run(load_flux(model, optimization, CPU), fill_inputs(number=1), [point(steps=2)])


def directory_with(path: Path, component: str, tensors: Tensors) -> FluxModelConfig:
    """The embedded model with other weights of one component."""
    model = copy_of_fill(path)
    save_file(tensors, weights_of(model, component), metadata={"format": "pt"})
    return config(model, base=None)


def overrides(model: FluxModelConfig) -> list[str]:
    base = [] if model.base is None else [f"model.base={model.base}"]
    given = [f"model.files.{name}={file}" for name, file in asdict(model.files).items() if file]
    return [f"model.path={model.path}", *base, *given]


def refusal(compose: Compose, model: FluxModelConfig, *more: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(compose(*overrides(model), *more))
    (problem,) = caught.value.problems
    assert problem.hint, "every error says what to do"
    return str(problem)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return latents(config(BASE, base=None))


@pytest.fixture
def bfl() -> Tensors:
    return files.bfl_tensors(embedded("tiny_fill"), "transformer")


def test_the_layout_of_the_transformer_is_that_of_the_library() -> None:
    """The library's converter knows only the full width, so each matrix gets one column here."""
    layout = WEIGHT_COMPONENTS["transformer"].layout({**FLUX_FILL.transformer, "num_layers": 2, "num_single_layers": 3})
    assert layout
    checkpoint: Tensors = {}
    pieces = flux_pieces(layout)
    for name, piece in pieces.items():
        rows = layout[name][0]
        tensor = checkpoint.get(piece.source, torch.zeros(0))
        checkpoint[piece.source] = torch.cat(
            [tensor, len(checkpoint) + torch.arange(len(tensor), len(tensor) + rows) / 1e5]
        )
    converted = convert_flux_transformer_checkpoint_to_diffusers(dict(checkpoint))
    assert converted.keys() == layout.keys()
    for name, piece in pieces.items():
        stop = None if piece.rows is None else piece.start + piece.rows
        own = checkpoint[piece.source][piece.start : stop]
        assert torch.equal(torch.cat(own.chunk(2)[::-1]) if piece.swaps_halves else own, converted[name]), name


def test_the_layout_of_the_vae_is_that_of_the_library() -> None:
    model = embedded("tiny_fill")
    converted = convert_ldm_vae_checkpoint(files.bfl_tensors(model, "vae"), read_json(model / "vae" / "config.json"))
    plain = files.tensors_of(model, "vae")
    assert converted.keys() == plain.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_in_one_file(
    compose: Compose, tmp_path: Path, bfl: Tensors, expected: torch.Tensor, prefix: str
) -> None:
    model = config(files.write(tmp_path / "flux.safetensors", files.prefixed(prefix, bfl)))
    check(compose(*overrides(model)))
    assert torch.equal(latents(model), expected)


def test_a_transformer_with_the_names_of_diffusers(compose: Compose, tmp_path: Path, expected: torch.Tensor) -> None:
    model = config(files.write(tmp_path / "flux.safetensors", files.tensors_of(embedded("tiny_fill"), "transformer")))
    check(compose(*overrides(model)))
    assert torch.equal(latents(model), expected)


def test_a_complete_checkpoint(compose: Compose, tmp_path: Path, expected: torch.Tensor) -> None:
    """The directory needs only configs and tokenizers then."""
    whole = files.write(tmp_path / "whole.safetensors", files.complete_checkpoint(embedded("tiny_fill")))
    base = copy_of_fill(tmp_path / "base")
    for component in files.COMFYUI_PREFIXES:
        weights_of(base, component).unlink()
    model = config(whole, str(base))
    check(compose(*overrides(model)))
    assert torch.equal(latents(model), expected)


def test_a_file_for_each_component(compose: Compose, tmp_path: Path, expected: torch.Tensor) -> None:
    made: dict[str, Any] = {
        name: files.write(tmp_path / f"{name}.safetensors", files.bfl_tensors(embedded("tiny_fill"), name))
        for name in files.COMFYUI_PREFIXES
    }
    model = config("embedded:tiny_fill", None, **made)
    check(compose(*overrides(model)))
    assert torch.equal(latents(model), expected)


def test_the_directory_may_be_of_another_flux(compose: Compose, tmp_path: Path, bfl: Tensors) -> None:
    """Only the input channels of FLUX.1-dev and FLUX.1-Fill differ, so one's directory goes with the other's file."""
    base = copy_of_fill(tmp_path / "base")
    change_json(base / "transformer" / "config.json", lambda values: values.update(in_channels=64))
    change_json(base / "model_index.json", lambda values: values.update(_class_name="FluxPipeline"))
    model = config(files.write(tmp_path / "fill.safetensors", bfl), str(base))
    check(compose(*overrides(model)))
    assert torch.equal(latents(model), latents(config(BASE, base=None)))


def test_mistakes_are_named(compose: Compose, tmp_path: Path, bfl: Tensors) -> None:
    file = files.write(tmp_path / "flux.safetensors", bfl)
    assert "also set model.base" in refusal(compose, config(file, None))
    assert "does not exist" in refusal(compose, config(tmp_path / "none.safetensors", None))
    assert "none.safetensors is missing" in refusal(compose, config(tmp_path / "none.safetensors"))
    assert "is not a .safetensors or .gguf file" in refusal(compose, config(BASE, None, vae=tmp_path / "ae.ckpt"))
    assert "has no vae, but transformer" in refusal(compose, config(BASE, None, vae=file))
    assert "model.base='embedded:tiny_fill': has no effect" in refusal(compose, config("embedded:tiny_fill"))
    assert "model.files replaces all of its components" in refusal(compose, config(file, transformer=file))
    assert "has no effect on random weights" in refusal(
        compose, config("x", None, vae=file), "model.weights=random", "model.layout=flux_fill"
    )
    other = files.write(tmp_path / "other.safetensors", {"a.weight": torch.zeros(1)})
    assert "has no component of FLUX.1 (its tensors: a.weight" in refusal(compose, config(other))


def test_damaged_files_are_named(compose: Compose, tmp_path: Path, bfl: Tensors) -> None:
    file = tmp_path / "flux.safetensors"
    model = config(files.write(file, without("double_blocks.0.img_attn.qkv.weight")(bfl)))
    said = refusal(compose, model)
    assert "3 of " in said
    assert "tensors are missing (transformer_blocks.0.attn.to_k.weight" in said
    files.write(file, {**bfl, "double_blocks.9.extra": torch.zeros(1)})
    assert "1 tensors are unknown (double_blocks.9.extra)" in refusal(compose, model)
    files.write(file, {**bfl, "single_blocks.0.linear1.weight": torch.zeros(7, 160)})
    assert "single_blocks.0.linear1.weight [7, 160] instead of [1120, 160]" in refusal(compose, model)
    files.write(file, {**bfl, "single_blocks.0.linear1.weight": torch.zeros(1120, 160, dtype=torch.int64)})
    assert "stores single_blocks.0.linear1.weight as I64" in refusal(compose, model)
    files.write(file, bfl)
    size = file.stat().st_size
    os.truncate(file, size // 2)
    assert f"flux.safetensors is truncated: it has {size // 2:,} bytes" in refusal(compose, model)
    file.write_text(LFS_POINTER)
    assert "is a Git LFS pointer" in refusal(compose, model)


def test_a_file_of_another_family(compose: Compose, tmp_path: Path) -> None:
    file = files.write(tmp_path / "dev.safetensors", files.bfl_tensors(embedded("tiny_dev"), "transformer"))
    said = refusal(compose, config(file, "embedded:tiny_fill"))
    assert "64 input channels, but model.family=flux_fill needs 384" in said
    assert str(file) in said


def test_a_file_without_guidance_needs_its_own_directory(compose: Compose, tmp_path: Path, bfl: Tensors) -> None:
    plain = {name: tensor for name, tensor in bfl.items() if not name.startswith("guidance_in.")}
    said = refusal(compose, config(files.write(tmp_path / "schnell.safetensors", plain)))
    assert "without guidance" in said
    assert "FLUX.1-schnell" in said


def test_content_decides_the_fingerprint(compose: Compose, tmp_path: Path, bfl: Tensors) -> None:
    one, same = (files.write(tmp_path / f"{name}.safetensors", bfl) for name in ("one", "same"))
    other = files.write(tmp_path / "other.safetensors", {**bfl, "img_in.bias": bfl["img_in.bias"] + 1})
    prints = [fingerprint(compose(*overrides(config(file)))) for file in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert fingerprint(compose()) not in prints
    clip = files.write(tmp_path / "clip.safetensors", files.tensors_of(embedded("tiny_fill"), "text_encoder"))
    assert text_identity(config(one)) == text_identity(config(other)) != text_identity(config(one, text_encoder=clip))


def test_files_are_pinned(tmp_path: Path, bfl: Tensors) -> None:
    file = files.write(tmp_path / "flux.safetensors", bfl)
    digest = model_digest(embedded("tiny_fill"), {"transformer": file})
    load_flux(replace(config(file), sha256=digest), NO_OPTIMIZATION, CPU)
    files.write(file, {**bfl, "img_in.bias": bfl["img_in.bias"] + 1})
    with pytest.raises(ModelError, match=r"model\.sha256"):
        load_flux(replace(config(file), sha256=digest), NO_OPTIMIZATION, CPU)


FP8: dict[str, Callable[[Tensors], Tensors]] = {
    "unscaled": files.unscaled_fp8,
    "e5m2": lambda tensors: files.unscaled_fp8(tensors, torch.float8_e5m2),
    "scaled": files.scaled_fp8,
    "newer names": lambda tensors: files.scaled_fp8(tensors, "weight_scale"),
    "rowwise": files.rowwise_fp8,
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", FP8)
def test_fp8_is_dequantized_exactly(compose: Compose, tmp_path: Path, bfl: Tensors, kind: str, dtype: str) -> None:
    stored = FP8[kind](bfl)
    model = config(files.write(tmp_path / "fp8.safetensors", stored), dtype=dtype)
    check(compose(*overrides(model)))
    plain = files.write(tmp_path / "plain.safetensors", files.dequantized(stored, getattr(torch, dtype)))
    assert torch.equal(latents(model), latents(config(plain, dtype=dtype)))


def test_text_encoders_and_vae_in_fp8(compose: Compose, tmp_path: Path) -> None:
    model = embedded("tiny_fill")
    t5 = files.scaled_fp8(files.tensors_of(model, "text_encoder_2"))
    stored = config(BASE, None, "bfloat16", text_encoder_2=files.write(tmp_path / "t5.safetensors", t5))
    check(compose(*overrides(stored)))
    plain = files.write(tmp_path / "plain.safetensors", files.dequantized(t5))
    assert torch.equal(latents(stored), latents(config(BASE, None, "bfloat16", text_encoder_2=plain)))


def test_a_scale_of_another_shape_is_refused(compose: Compose, tmp_path: Path, bfl: Tensors) -> None:
    stored = {**files.scaled_fp8(bfl), "img_in.scale_weight": torch.ones(3)}
    said = refusal(compose, config(files.write(tmp_path / "fp8.safetensors", stored)))
    assert "img_in.scale_weight has shape [3], but its weight has 160 rows" in said
    nvfp4 = {**bfl, "img_in.weight_scale": torch.ones(160, 24)}
    assert "with img_in.weight_scale, which fluxexp does not read" in refusal(
        compose, config(files.write(tmp_path / "nvfp4.safetensors", nvfp4))
    )


WITH_FP8 = replace(NO_OPTIMIZATION, hoist_constants=True, fused_kernels=True, fp8_linears=True)


@pytest.mark.parametrize("kind", ["unscaled", "scaled", "rowwise", "e5m2"])
def test_fp8_goes_straight_into_fp8_layers(tmp_path: Path, bfl: Tensors, kind: str) -> None:
    stored = FP8[kind](bfl)
    model = load_flux(config(files.write(tmp_path / "fp8.safetensors", stored)), WITH_FP8, CPU)
    block = model.transformer.single_transformer_blocks[0]
    assert isinstance(block.proj_out, Fp8Linear)
    kept = torch.equal(
        block.proj_out.weight.view(torch.uint8), stored["single_blocks.0.linear2.weight"].view(torch.uint8)
    )
    assert kept == (kind != "e5m2"), "another format is quantized again"
    qkv = block.attn.to_qkv
    assert isinstance(qkv, Fp8Linear)
    assert qkv.weight.shape == (480, 160)
    assert qkv.scales.shape == (1, 480)
    values = files.dequantized(stored, torch.float32)["single_blocks.0.linear1.weight"][:480]
    if kept:
        assert torch.equal(qkv.weight.float() * qkv.scales.t(), values)


def test_rowwise_fp8_gives_the_latents_of_our_own_quantization(tmp_path: Path, bfl: Tensors) -> None:
    """`fp8r` quantizes a row as fluxexp does. Here, it does not quantize the modulations either."""
    fp8r = files.write(tmp_path / "fp8r.safetensors", files.rowwise_fp8(bfl, "mod"))
    assert torch.equal(latents(config(fp8r), WITH_FP8), latents(config(BASE, base=None), WITH_FP8))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16", "F16"])
def test_gguf(compose: Compose, tmp_path: Path, bfl: Tensors, kind: str) -> None:
    pytest.importorskip("gguf")
    file = files.write_gguf(tmp_path / "flux.gguf", bfl, kind)
    model = config(file)
    check(compose(*overrides(model)))
    plain = files.write(tmp_path / "plain.safetensors", files.dequantized_gguf(file))
    assert torch.equal(latents(model), latents(config(plain)))


def test_t5_in_gguf(compose: Compose, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    named = files.llama_cpp_names(embedded("tiny_fill"))
    file = files.write_gguf(tmp_path / "t5.gguf", named, "BF16")
    model = config(BASE, None, text_encoder_2=file)
    check(compose(*overrides(model)))
    t5 = files.tensors_of(embedded("tiny_fill"), "text_encoder_2")
    rounded = {name: tensor.bfloat16() if tensor.ndim == 2 else tensor for name, tensor in t5.items()}
    expected = config(BASE, None, text_encoder_2=files.write(tmp_path / "t5.safetensors", rounded))
    assert torch.equal(latents(model), latents(expected))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q5_0"])
def test_blocks_of_gguf(tmp_path: Path, kind: str) -> None:
    """Blocks of random bytes are read as the package gguf reads them."""
    gguf = pytest.importorskip("gguf")
    quantized = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantized]
    data = np.random.default_rng(0).integers(0, 256, (4, 2 * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "flux")
    writer.add_tensor("x", data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_tensors(tmp_path / "x.gguf") == {"x": StoredTensor(kind, (4, 2 * block))}
    found = open_tensors([tmp_path / "x.gguf"]).rows("x", 1, 2)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(data, quantized)[1:3])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_damaged_gguf_is_named(compose: Compose, tmp_path: Path, bfl: Tensors) -> None:
    pytest.importorskip("gguf")
    file = files.write_gguf(tmp_path / "flux.gguf", without("img_in.bias")(bfl))
    assert "tensors are missing (x_embedder.bias)" in refusal(compose, config(file))
    files.write_gguf(file, bfl)
    size = file.stat().st_size
    os.truncate(file, size - 100)
    assert "flux.gguf is truncated" in refusal(compose, config(file))
    for end in (3, 20, 60, 3000):
        os.truncate(file, end)
        assert "flux.gguf has a damaged GGUF header" in refusal(compose, config(file))
    file.write_bytes(b"GGUF" + bytes(200))
    assert "has a damaged GGUF header (version 0)" in refusal(compose, config(file))


def test_a_package_that_is_missing_is_named(
    compose: Compose, tmp_path: Path, bfl: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    file = files.write_gguf(tmp_path / "flux.gguf", bfl)
    monkeypatch.setattr(checkpoint_files, "find_spec", lambda _: None)
    assert "pip install 'fluxexp[gguf]'" in refusal(compose, config(file))


BITSANDBYTES: dict[str, Callable[..., tuple[Tensors, Tensors]]] = {
    "nf4": lambda *given: files.four_bits(*given, quant_type="nf4"),
    "nested fp4": lambda *given: files.four_bits(*given, quant_type="fp4", compress_statistics=True),
    "8 bits": files.eight_bits,
}


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_directories_of_bitsandbytes(compose: Compose, tmp_path: Path, kind: str, component: str) -> None:
    pytest.importorskip("bitsandbytes")
    plain = files.tensors_of(embedded("tiny_fill"), component)
    is_quantized = lambda name: "block" in name and "relative" not in name  # noqa: E731
    stored, values = BITSANDBYTES[kind](plain, is_quantized)
    model = directory_with(tmp_path / "stored", component, stored)
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": kind != "8 bits", "load_in_8bit": kind == "8 bits"}
    change = {"quantization_config": quantization}
    change_json(Path(model.path) / component / "config.json", lambda config: config.update(change))
    check(compose(*overrides(model)))
    assert torch.equal(latents(model), latents(directory_with(tmp_path / "plain", component, values)))


def test_a_directory_of_bitsandbytes_is_checked(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    plain = files.tensors_of(embedded("tiny_fill"), "transformer")
    stored, _ = files.four_bits(plain, lambda name: "blocks" in name, quant_type="nf4")
    model = directory_with(tmp_path / "model", "transformer", without("x_embedder.bias")(stored))
    change = {"quantization_config": {"quant_method": "bitsandbytes"}}
    change_json(Path(model.path) / "transformer" / "config.json", lambda config: config.update(change))
    assert "tensors are missing (x_embedder.bias)" in refusal(compose, model)
    save_file(stored, weights_of(Path(model.path), "transformer"))
    monkeypatch.setattr(stored_weights, "find_spec", lambda _: None)
    assert "pip install 'fluxexp[bitsandbytes]'" in refusal(compose, model)


def test_projections_of_which_only_some_are_in_fp8_are_merged() -> None:
    attn: Any = torch.nn.Module()
    plain = {name: torch.nn.Linear(16, 32) for name in ("to_q", "to_k", "to_v")}
    kept = Fp8Linear.quantized(plain["to_k"])
    for name, layer in plain.items():
        attn.add_module(name, kept if name == "to_k" else layer)
    merge_projections(attn)
    expected = torch.cat([plain["to_q"].weight, kept.weight.float() * kept.scales.t(), plain["to_v"].weight])
    assert torch.equal(attn.to_qkv.weight, expected)
    assert not hasattr(attn, "to_q")


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_a_directory_of_unscaled_fp8(compose: Compose, tmp_path: Path, component: str) -> None:
    """The libraries themselves cast such weights."""
    stored = files.unscaled_fp8(files.tensors_of(embedded("tiny_fill"), component))
    model = directory_with(tmp_path / "fp8", component, stored)
    check(compose(*overrides(model)))
    plain = {
        name: tensor.bfloat16() if tensor.dtype == torch.float8_e4m3fn else tensor for name, tensor in stored.items()
    }
    assert torch.equal(latents(model), latents(directory_with(tmp_path / "plain", component, plain)))


def test_the_other_components_may_be_on_a_hub(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfl: Tensors, expected: torch.Tensor
) -> None:
    """The weights of the transformer are not downloaded then."""
    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = make_hub_cache(root, "acme/TinyFill", "0" * 40)
    weights_of(snapshot, "transformer").unlink()
    asked = compose(*overrides(config(files.write(tmp_path / "flux.safetensors", bfl), "acme/TinyFill")))
    check(asked)
    fixed = pinned(asked, download=False).model
    assert isinstance(fixed, FluxModelConfig)
    assert fixed.revision == "0" * 40
    assert torch.equal(latents(replace(fixed, dtype="float32")), expected)
    assert "model.base='acme/Absent': is not in the local hub cache" in _unavailable(asked)


def _unavailable(asked: RunConfig) -> str:
    assert isinstance(asked.model, FluxModelConfig)
    with pytest.raises(ConfigError) as caught:
        pinned(replace(asked, model=replace(asked.model, base="acme/Absent")), download=True)
    return str(caught.value)


@pytest.mark.slow
def test_a_run_records_its_files(program: Program, tmp_path: Path, bfl: Tensors) -> None:
    file = files.write(tmp_path / "fp8.safetensors", files.scaled_fp8(bfl))
    vae = files.write(tmp_path / "ae.safetensors", files.bfl_tensors(embedded("tiny_fill"), "vae"))
    tiny = ("dataset.height=64", "dataset.width=64", "sampling.steps=1", "dataset.limit=1")
    off = ("metrics=none", "report=off", "tracking=disabled", "output.dir=made")
    given = (f"model.path={file}", f"model.base={BASE}", f"model.files.vae={vae}")
    done = program.run_command(program.command("+experiment=fill", *given, *tiny, *off))
    assert done.returncode == 0, done.stderr
    (summary,) = program.cwd.glob("made*/**/summary.json")
    model = json.loads(summary.read_text())["model"]
    assert (model["path"], model["base"], model["files"]) == (str(file), BASE, f"vae={vae}")
    os.truncate(file, 1000)
    done = program.run_command(program.command("+experiment=fill", *given, *tiny, *off))
    assert done.returncode == 2
    assert "fp8.safetensors is damaged or truncated" in done.stderr


def _fp8_file(path: Path, kind: str) -> tuple[FluxModelConfig, FluxModelConfig]:
    stored = FP8[kind](files.bfl_tensors(embedded("tiny_fill"), "transformer"))
    plain = files.write(path / "plain.safetensors", files.dequantized(stored))
    return config(files.write(path / "fp8.safetensors", stored)), config(plain)


def _gguf_file(path: Path, kind: str) -> tuple[FluxModelConfig, FluxModelConfig]:
    pytest.importorskip("gguf")
    file = files.write_gguf(path / "flux.gguf", files.bfl_tensors(embedded("tiny_fill"), "transformer"), kind)
    return config(file), config(files.write(path / "plain.safetensors", files.dequantized_gguf(file)))


def _bitsandbytes_directory(path: Path, kind: str) -> tuple[FluxModelConfig, FluxModelConfig]:
    pytest.importorskip("bitsandbytes")
    plain = files.tensors_of(embedded("tiny_fill"), "transformer")
    stored, values = BITSANDBYTES[kind](plain, lambda name: "block" in name)
    model = directory_with(path / "stored", "transformer", stored)
    change = {"quantization_config": {"quant_method": "bitsandbytes"}}
    change_json(Path(model.path) / "transformer" / "config.json", lambda config: config.update(change))
    return model, directory_with(path / "plain", "transformer", values)


@pytest.mark.parametrize(
    ("make", "kind", "optimization", "mixes"),
    [
        (_fp8_file, "rowwise", WITH_FP8, False),
        (_fp8_file, "unscaled", NO_OPTIMIZATION, False),
        (_gguf_file, "Q4_0", NO_OPTIMIZATION, True),
        (_bitsandbytes_directory, "nf4", NO_OPTIMIZATION, False),
        (_bitsandbytes_directory, "8 bits", WITH_FP8, False),
    ],
    ids=["fp8 into fp8 layers", "fp8", "gguf, mixed", "4 bits", "8 bits into fp8 layers"],
)
def test_a_lora_is_merged_into_the_dequantized_weights(
    compose: Compose, tmp_path: Path, make: Any, kind: str, optimization: OptimizationConfig, mixes: bool
) -> None:
    """Quantized checkpoints have ordinary weights when they are loaded, so LoRAs work on all of them."""
    stored, plain = make(tmp_path, kind)
    use = LoraUse(lora_files.peft_with(tmp_path / "a.safetensors"), 0.5)
    check(compose(*overrides(stored), f"lora.path={use.path}", "lora.scale=0.5"))
    found = []
    for each in (stored, plain):
        model = load_flux(replace(each, dtype="bfloat16"), optimization, CPU, takes_loras=True, mixes_loras=mixes)
        before = run(model, fill_inputs(number=1), [point(steps=2)])
        found.append(run(model, fill_inputs(number=1), [replace(point(steps=2), lora=(use,))]))
        assert not torch.equal(found[-1], before)
        assert torch.equal(run(model, fill_inputs(number=1), [point(steps=2)]), before), "it is taken out exactly"
    assert torch.equal(*found)
