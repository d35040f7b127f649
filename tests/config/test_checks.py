from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fluxexp.config import RunConfig, check, family_checks, optimization_kinds
from fluxexp.config.checks import ATTENTION_BACKENDS
from fluxexp.config.families import FAMILIES
from fluxexp.config.model_paths import model_directory
from fluxexp.errors import ConfigError

Compose = Callable[..., RunConfig]


def answer(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check(config)
    return str(caught.value)


def make_model(path: Path, class_name: str = "FluxFillPipeline") -> Path:
    """A copy of the embedded model that fits the family."""
    embedded = model_directory("embedded:tiny_fill" if class_name == "FluxFillPipeline" else "embedded:tiny_dev")
    assert embedded
    return shutil.copytree(embedded, path)


def test_the_default_config_and_hub_ids_pass(compose: Compose) -> None:
    check(compose())
    check(compose("model=flux_fill"))


def test_a_complete_directory_passes(compose: Compose, tmp_path: Path) -> None:
    check(compose("model=flux_fill", f"model.path={make_model(tmp_path / 'm')}"))


def test_missing_directory(compose: Compose) -> None:
    assert "model.path='no/such/place': is not a directory" in answer(compose("model.path=no/such/place"))


def test_directory_without_index(compose: Compose, tmp_path: Path) -> None:
    assert "has no model_index.json" in answer(compose(f"model.path={tmp_path}"))


def test_file_instead_of_directory(compose: Compose, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    file.touch()
    assert "is a file" in answer(compose(f"model.path={file}"))


def test_damaged_index(compose: Compose, tmp_path: Path) -> None:
    (make_model(tmp_path / "m") / "model_index.json").write_text("{")
    assert "damaged model_index.json" in answer(compose(f"model.path={tmp_path / 'm'}"))


def test_model_of_another_family(compose: Compose, tmp_path: Path) -> None:
    said = answer(compose(f"model.path={make_model(tmp_path / 'm', 'FluxPipeline')}"))
    assert "contains a FluxPipeline, but model.family is flux_fill" in said
    assert "use model.family=flux or flux_img2img" in said


def test_incomplete_download(compose: Compose, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m")
    (path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(path / "tokenizer_2")
    said = answer(compose(f"model.path={path}"))
    assert "has no tokenizer_2" in said
    assert "vae/ has no weights in safetensors" in said


def test_unknown_embedded_model(compose: Compose) -> None:
    assert "embedded: tiny_dev, tiny_fill" in answer(compose("model.path=embedded:huge"))


def test_a_family_that_needs_images_refuses_prompts_alone(compose: Compose, tmp_path: Path) -> None:
    assert "dataset='prompts': does not give the input 'image', but" in answer(
        compose("dataset=prompts", f"dataset.path={tmp_path}")
    )


def test_text_to_image_cannot_paste_or_start_from_an_image(compose: Compose) -> None:
    said = answer(compose("model=tiny_dev", "sampling.strength=0.5"))
    assert "output.paste=True" in said
    assert "sampling.strength=0.5" in said


def test_world_size(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not match: 1 process(es) were started" in answer(compose("parallelism.expect_world_size=2"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check(compose("parallelism.expect_world_size=2"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("parallelism.context_size=3",), "parallelism.context_size=3: does not divide the 8 processes"),
        (
            ("optimization.hoist_constants=false",),
            "optimization.hoist_constants=False: must be true for context parallelism",
        ),
        (
            ("optimization.fp8_linears=true", "optimization.fp8_attention=true"),
            "optimization.fp8_attention=True: does not work with context parallelism",
        ),
        (("parallelism.context_kind=ring", "optimization.attention_backend=sage"), "has no effect with"),
        (
            ("sampling.max_sequence_length=7",),
            "sampling.max_sequence_length=7: is too small for context parallelism",
        ),
        (
            ("model=tiny_fill", "model.weights=pretrained"),
            "parallelism.context_size=8: is larger than 5, the number of attention heads",
        ),
    ],
)
def test_settings_that_context_parallelism_does_not_allow(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], expected: str
) -> None:
    random = ("model=flux_fill", "model.weights=random")
    check(compose("parallelism=context", *random, *overrides))  # one process needs no context parallelism
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check(compose("parallelism=context", *random))
    assert expected in answer(compose("parallelism=context", *random, *overrides))


def test_context_size_without_context_parallelism(compose: Compose) -> None:
    assert "has no effect with parallelism.mode=data" in answer(
        compose("parallelism=data", "parallelism.context_size=2")
    )


def test_attention_backends_are_those_of_diffusers(compose: Compose) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert {backend.value for backend in AttentionBackendName} == ATTENTION_BACKENDS
    assert "did you mean 'flash'?" in answer(compose("optimization.attention_backend=flsh"))
    check(compose("optimization.attention_backend=native"))


def test_a_step_cache_needs_hoisted_constants(compose: Compose) -> None:
    cached = "optimization/step_cache=first_block"
    config = compose(cached)
    check(config)
    assert config.optimization.hoist_constants is True, "auto means on for hoist_constants, on any device"
    assert "optimization.hoist_constants=False: must be on" in answer(compose(cached, "optimization=none"))


@pytest.mark.parametrize("offload", ["group", "sequential"])
def test_streamed_blocks_need_hoisted_constants(compose: Compose, offload: str) -> None:
    asked = f"optimization.offload={offload}"
    assert f"must be on for offload={offload}" in answer(compose(asked, "optimization.hoist_constants=false"))
    check(compose(asked))
    check(compose("optimization.offload=model", "optimization.hoist_constants=false"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("optimization.fp8_linears=true", "optimization.fused_kernels=false"),
            "optimization.fused_kernels=False: must be on for fp8_linears, which quantizes activations",
        ),
        (("optimization.fp8_attention=true",), "optimization.fp8_linears=False: must be on for fp8_attention"),
    ],
)
def test_an_approximate_optimization_needs_others(compose: Compose, overrides: tuple[str, ...], expected: str) -> None:
    assert expected in answer(compose(*overrides))


def test_a_lossless_optimization_without_what_it_needs_is_only_skipped(compose: Compose) -> None:
    check(compose("optimization=none", "optimization.modulation_table=true"))


def test_step_caches_that_cannot_work(compose: Compose) -> None:
    heun = "scheduler=flow_match_heun"
    assert "evaluates each noise level more than once" in answer(compose("optimization/step_cache=taylorseer", heun))
    check(compose("optimization/step_cache=first_block", heun))
    empty = compose("optimization/step_cache=magcache", "optimization.step_cache.ratios=[]")
    assert "optimization.step_cache.ratios='[]': must not be empty" in answer(empty)


def test_a_family_that_uses_no_image_rejects_a_dataset_of_images(compose: Compose) -> None:
    for kind in ("folder", "table"):
        said = answer(compose("+experiment=text_to_image", f"dataset={kind}", "dataset.path=x"))
        assert (
            f"dataset='{kind}': gives the input 'image', which would not be used: tiny_dev makes images from text alone"
            in said
        )
        assert "use dataset=prompts" in said
    check(compose("+experiment=text_to_image"))  # `shapes` gives its captions


def test_a_family_that_needs_masks_rejects_a_dataset_without_masks(compose: Compose) -> None:
    said = answer(compose("dataset=folder", "dataset.path=x", "dataset.mask=none"))
    assert "dataset.mask='none': does not give the input 'mask', but tiny_fill fills the masked region" in said


def test_masks_that_would_not_be_read(compose: Compose) -> None:
    said = answer(compose("dataset=folder", "dataset.mask=none", "dataset.alpha_mask=true", "dataset.masks=x"))
    assert "dataset.alpha_mask=True: has no effect with dataset.mask=none" in said
    assert "dataset.masks='x': has no effect with dataset.mask=none" in said


def test_random_weights_of_a_layout_that_does_not_fit_the_family(compose: Compose) -> None:
    said = answer(compose("model=flux_fill", "model.weights=random", "model.layout=flux_dev"))
    assert "model.layout='flux_dev': does not fit model.family=flux_fill" in said
    assert "layouts of flux_fill: flux_fill" in said


def test_a_checkpoint_with_the_transformer_of_another_family(compose: Compose, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m")
    other = model_directory("embedded:tiny_dev")
    assert other
    shutil.copytree(other / "transformer", path / "transformer", dirs_exist_ok=True)
    said = answer(compose("model=flux_fill", f"model.path={path}"))
    assert "a transformer with 64 input channels, but model.family=flux_fill needs 384" in said


def test_an_optimization_that_the_family_does_not_support(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = replace(FAMILIES["flux_fill"], unsupported_optimizations=frozenset(["hoist_constants"]))
    for module in (family_checks, optimization_kinds):
        monkeypatch.setattr(module, "FAMILIES", {**FAMILIES, "flux_fill": limited})
    assert compose("optimization.hoist_constants=auto").optimization.hoist_constants is False, "auto leaves it out"
    check(compose())
    said = answer(compose("optimization.hoist_constants=true"))
    assert "optimization.hoist_constants=True: does not work with model.family=flux_fill" in said


def test_image_to_image_uses_images_without_masks(compose: Compose, tmp_path: Path) -> None:
    img2img = "+experiment=img2img"
    check(compose(img2img))
    check(compose(img2img, "dataset=folder", "dataset.path=x", "dataset.mask=none"))
    assert "use dataset.mask=none" in answer(compose(img2img, "dataset=folder", "dataset.path=x"))
    assert "dataset.mask='box': gives the input 'mask', which would not be used" in answer(
        compose(img2img, "dataset=table", "dataset.mask=box")
    )
    assert "does not give the input 'image'" in answer(compose(img2img, "dataset=prompts", f"dataset.path={tmp_path}"))
    assert "output.paste=True: needs a model that fills" in answer(compose(img2img, "output.paste=true"))


def test_a_family_loads_checkpoints_with_the_same_components(compose: Compose, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m", "FluxPipeline")
    check(compose("+experiment=img2img", f"model.path={path}"))


def test_control_models_need_control_images(compose: Compose) -> None:
    control, folder = "+experiment=control", ("dataset=folder", "dataset.path=x")
    check(compose(control))
    check(compose(control, *folder, "dataset.images_are=controls"))
    check(compose("+experiment=control_inpaint", *folder, "dataset.controls=edges"))
    said = answer(compose(control, "dataset.controls=null"))
    assert "dataset.controls='null': does not give the input 'control image', but tiny_control makes images" in said
    assert "use dataset.controls=outlines" in said
    said = answer(compose(control, *folder, "dataset.mask=none"))
    assert "set dataset.controls=DIR, or use dataset.images_are=controls" in said
    said = answer(compose(control, *folder, "dataset.controls=edges", "dataset.mask=none"))
    assert "gives the input 'image', which would not be used" in said
    assert "use dataset.images_are=controls if the images are that" in said
    said = answer(compose("+experiment=fill", *folder, "dataset.controls=edges"))
    assert "dataset.controls='edges': gives the input 'control image', which would not be used" in said
    assert "use dataset.controls=null, or a Control model" in said
    said = answer(compose("+experiment=inpaint", *folder, "dataset.images_are=controls"))
    assert "dataset.images_are='controls': does not give the input 'image'" in said
    assert "use dataset.images_are=inputs" in said


def test_a_text_to_image_model_needs_a_control_lora_for_control_images(compose: Compose) -> None:
    control = "+experiment=control"
    for lora in ("lora=none", "lora.path=embedded:tiny_pastel"):
        said = answer(compose(control, lora))
        assert "has no Control LoRA, without which tiny_control, a text-to-image model, ignores control images" in said
        assert "lora=tiny_control" in said
    check(compose(control, "lora.scale=0"))
    check(compose(control, "lora.path=[embedded:tiny_pastel,embedded:tiny_control]"))
    assert "does not fit the model: transformer.x_embedder" in answer(
        compose("+experiment=text_to_image", "lora=tiny_control")
    )


def test_embedded_loras_have_names_and_models_of_their_own(compose: Compose) -> None:
    said = answer(compose("lora.path=embedded:../tiny"))
    assert "lora.path='embedded:../tiny': is not an embedded LoRA" in said
    assert "embedded: tiny_control, tiny_outlined, tiny_pastel" in said
    said = answer(compose("+experiment=control", "model=flux_control"))
    assert "lora.path='embedded:tiny_control': is for an embedded model, not for" in said
    assert "use lora=none" in said
    check(compose("+experiment=control", "model=small_control", "lora=none"))


def test_the_images_of_a_dataset_have_one_meaning(compose: Compose) -> None:
    control = ("+experiment=control", "dataset=folder", "dataset.path=x", "dataset.images_are=controls")
    said = answer(compose(*control, "dataset.controls=edges"))
    assert "dataset.controls='edges': has no effect with dataset.images_are=controls" in said
    said = answer(compose(*control, "dataset.mask=box"))
    assert "dataset.mask='box': has no effect with dataset.images_are=controls" in said
