"""Model directories that people have: damaged, half downloaded, quantized, of another family, or on a hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from fluxexp.config import RunConfig, check, fingerprint
from fluxexp.config.component_checks import WEIGHT_COMPONENTS, compare_tensors
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.model_pinning import pinned
from fluxexp.config.schema import NO_FILES, FluxModelConfig
from fluxexp.config.weight_headers import tensor_shapes
from fluxexp.errors import ConfigError, ModelError
from fluxexp.models.loading.pipeline_loader import load_flux
from fluxexp.models.loading.random_weights import pipeline_without_weights
from tests.cases.model_directories import (
    LFS_POINTER,
    QUANTO,
    WEIGHTS,
    Tensors,
    change_json,
    change_tensors,
    copy_of_fill,
    embedded,
    give_variant,
    make_hub_cache,
    renamed,
    shard,
    weights_of,
    without,
)
from tests.models.conftest import NO_OPTIMIZATION, fill_inputs, point, run
from tests.models.small_layouts import scaled_down
from tests.program import Program

Compose = Callable[..., RunConfig]
CPU = torch.device("cpu")
HUB_ID = "acme/TinyFill"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(compose: Compose, model: Path, *overrides: str) -> str:
    """What fluxexp says about a model. There is one problem, and torch has no part in it."""
    with pytest.raises(ConfigError) as caught:
        check(compose(f"model.path={model}", *overrides))
    (problem,) = caught.value.problems
    assert problem.hint, "every error says what to do"
    return str(problem)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return copy_of_fill(tmp_path / "model")


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_pointer_of_git_lfs_is_no_weights(compose: Compose, model: Path, component: str) -> None:
    weights_of(model, component).write_text(LFS_POINTER)
    said = refusal(compose, model)
    assert f"{component}/{WEIGHTS[component]} is a Git LFS pointer" in said
    assert "git lfs pull" in said


@pytest.mark.parametrize("component", WEIGHTS)
def test_truncated_weights(compose: Compose, model: Path, component: str) -> None:
    file = weights_of(model, component)
    size = file.stat().st_size
    os.truncate(file, size // 2)
    assert f"{WEIGHTS[component]} is truncated: it has {size // 2:,} bytes instead of {size:,}" in refusal(
        compose, model
    )
    os.truncate(file, 100)  # within the header
    assert f"{component}/{WEIGHTS[component]} is damaged or truncated" in refusal(compose, model)
    os.truncate(file, 0)
    assert f"{component}/{WEIGHTS[component]} is empty" in refusal(compose, model)


@pytest.mark.parametrize(
    ("component", "title", "missing"),
    [
        ("text_encoder", "CLIP", "final_layer_norm.weight"),
        ("text_encoder_2", "T5", "shared.weight"),
        ("transformer", "FLUX", "x_embedder.weight"),
        ("vae", "VAE", "encoder.conv_in.weight"),
    ],
)
def test_missing_renamed_and_misshapen_tensors_are_named(
    compose: Compose, model: Path, component: str, title: str, missing: str
) -> None:
    sound = weights_of(model, component).read_bytes()
    change_tensors(model, component, without(missing))
    said = refusal(compose, model)
    assert f"{component} ({title}) does not fit its config.json: 1 of " in said
    assert f"tensors are missing ({missing})" in said

    weights_of(model, component).write_bytes(sound)
    change_tensors(model, component, renamed("model.diffusion."))
    said = refusal(compose, model)
    assert "tensors are missing (" in said
    assert "tensors are unknown (model.diffusion." in said

    weights_of(model, component).write_bytes(sound)
    change_tensors(model, component, lambda tensors: {**tensors, missing: torch.zeros(3)})
    assert f"1 tensors have another shape ({missing} [3] instead of [" in refusal(compose, model)


def test_all_of_clip_and_t5_may_be_there(compose: Compose, model: Path) -> None:
    """Files of the whole CLIP and T5 have tensors that the text encoders do not use, and older ones a prefix."""
    change_tensors(model, "text_encoder", renamed("text_model."))
    change_tensors(
        model, "text_encoder", lambda tensors: {**tensors, "text_model.embeddings.position_ids": torch.zeros(1, 32)}
    )

    def with_decoder(tensors: Tensors) -> Tensors:
        return {**tensors, "decoder.final_layer_norm.weight": torch.zeros(128), "lm_head.weight": torch.zeros(208, 128)}

    change_tensors(model, "text_encoder_2", with_decoder)
    check(compose(f"model.path={model}"))


def test_a_vae_with_older_names_loads(compose: Compose, model: Path) -> None:
    expected = latents(config(model))
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(name: str) -> str:
        for new, before in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        return name

    change_tensors(model, "vae", lambda tensors: {old(name): tensor for name, tensor in tensors.items()})
    check(compose(f"model.path={model}"))
    assert torch.equal(latents(config(model)), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [lambda layout: layout, scaled_down])
def test_the_layouts_are_those_of_the_libraries(layout: str, scale: Callable[..., object]) -> None:
    pipeline = pipeline_without_weights(scale(LAYOUTS[layout]), torch.bfloat16)  # type: ignore[arg-type]
    assert WEIGHT_COMPONENTS.keys() - pipeline.components.keys() == {"controlnet"}, "tests/config/test_controlnet.py"
    for name in WEIGHT_COMPONENTS.keys() & pipeline.components.keys():
        module, component = getattr(pipeline, name), WEIGHT_COMPONENTS[name]
        config = dict(module.config) if name in ("transformer", "vae") else module.config.to_dict()
        expected = component.layout(config)
        assert expected
        found = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        compare_tensors(name, found, expected, component.title)


def test_shards(compose: Compose, model: Path) -> None:
    for component in ("transformer", "text_encoder_2"):
        _, second = shard(model, component)
        check(compose(f"model.path={model}"))
        content = second.read_bytes()
        second.unlink()
        assert f"{component}/{second.name} is missing" in refusal(compose, model)
        second.write_bytes(content)
        index = weights_of(model, component).with_name(f"{WEIGHTS[component]}.index.json")
        text = index.read_text()
        index.unlink()
        assert f"{component}/ has 2 shard(s), but {index.name} is missing" in refusal(compose, model)
        index.write_text(text)


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_quantized_weights(compose: Compose, model: Path, component: str) -> None:
    change_json(model / component / "config.json", lambda values: values.update(quantization_config=QUANTO))
    assert f"{component} ({WEIGHT_COMPONENTS[component].title}) is quantized (quant_method=quanto)" in refusal(
        compose, model
    )


def test_the_transformer_of_flux_dev_in_a_fill_model(compose: Compose, model: Path) -> None:
    shutil.copytree(embedded("tiny_dev") / "transformer", model / "transformer", dirs_exist_ok=True)
    assert "64 input channels, but model.family=flux_fill needs 384" in refusal(compose, model)


@pytest.mark.parametrize(
    ("tokenizer", "files"), [("tokenizer", "vocab.json and merges.txt"), ("tokenizer_2", "spiece.model")]
)
def test_a_tokenizer_without_a_vocabulary(compose: Compose, model: Path, tokenizer: str, files: str) -> None:
    whole = model / tokenizer / "tokenizer.json"
    sound = whole.read_text()
    whole.write_text(LFS_POINTER)
    assert f"{tokenizer}/tokenizer.json is a Git LFS pointer" in refusal(compose, model)
    whole.write_text(sound)
    change_json(whole, lambda values: values["model"].update(vocab=[]))
    assert f"{tokenizer}/ has an empty vocabulary" in refusal(compose, model)
    whole.unlink()
    assert f"{tokenizer}/ has no vocabulary: neither tokenizer.json nor {files}" in refusal(compose, model)
    shutil.rmtree(model / tokenizer)
    assert f"has no {tokenizer}" in refusal(compose, model)
    (model / tokenizer).mkdir()
    assert f"{tokenizer}/ is empty" in refusal(compose, model)


def test_the_tokenizer_of_another_model(compose: Compose, model: Path) -> None:
    shutil.copytree(model / "tokenizer", model / "tokenizer_2", dirs_exist_ok=True)
    assert "tokenizer_2/ has 682 tokens, but text_encoder_2 knows only 208" in refusal(compose, model)


def test_components_of_two_models(compose: Compose, model: Path) -> None:
    change_json(model / "transformer" / "config.json", lambda values: values.update(joint_attention_dim=4096))
    change_tensors(model, "transformer", lambda tensors: {**tensors, "context_embedder.weight": torch.zeros(160, 4096)})
    said = refusal(compose, model)
    assert "has a text_encoder_2 that makes 128 values per token, but its transformer takes 4096" in said


def test_damaged_settings(compose: Compose, model: Path) -> None:
    index = model / "model_index.json"
    sound = index.read_text()
    for text, reason in (("[]", "holds no JSON object"), ("\ufeff" + sound, "byte order mark"), ("{", "is damaged")):
        index.write_text(text, encoding="utf-8")
        assert reason in refusal(compose, model)
    index.write_text(sound)
    change_json(index, lambda values: values.update(text_encoder=[None, None]))
    assert "text_encoder is absent, but fluxexp needs CLIPTextModel" in refusal(compose, model)
    index.write_text(sound)
    change_json(index, lambda values: values.update(transformer=["transformer", "MyFlux"]))
    assert "transformer is MyFlux, but fluxexp needs FluxTransformer2DModel" in refusal(compose, model)
    index.write_text(sound)
    (model / "scheduler" / "scheduler_config.json").unlink()
    (model / "scheduler" / "README.md").touch()
    assert "scheduler/scheduler_config.json is missing" in refusal(compose, model)


def config(path: Path | str, variant: str | None = None) -> FluxModelConfig:
    return FluxModelConfig(
        family="flux_fill",
        name="mine",
        path=str(path),
        base=None,
        files=NO_FILES,
        revision=None,
        variant=variant,
        sha256=None,
        weights="pretrained",
        layout=None,
        dtype="float32",
        resolution=128,
    )


def latents(model: FluxModelConfig) -> torch.Tensor:
    return run(load_flux(model, NO_OPTIMIZATION, CPU), fill_inputs(number=1), [point(steps=1)])


def test_files_of_a_variant(compose: Compose, model: Path) -> None:
    expected = latents(config(model))
    for component in WEIGHTS:
        give_variant(model, component, "fp16")
    said = refusal(compose, model)
    assert "model.variant: is null, but text_encoder, text_encoder_2, transformer, vae" in said
    assert "use model.variant=fp16" in said
    assert "variants: fp16" in refusal(compose, model, "model.variant=bf16")
    check(compose(f"model.path={model}", "model.variant=fp16"))
    assert torch.equal(latents(config(model, "fp16")), expected)


def test_shards_of_a_variant(compose: Compose, model: Path) -> None:
    shards = shard(model, "transformer")
    index = weights_of(model, "transformer").with_name(f"{WEIGHTS['transformer']}.index.json")
    names = {file.name: file.name.replace("model-", "model.fp16-") for file in shards}
    for file in shards:
        file.rename(file.with_name(names[file.name]))
    change_json(index, lambda values: values.update(weight_map={k: names[v] for k, v in values["weight_map"].items()}))
    index.rename(index.with_name(index.name.replace(".json", ".fp16.json")))
    assert "use model.variant=fp16" in refusal(compose, model)
    check(compose(f"model.path={model}", "model.variant=fp16"))
    assert torch.equal(latents(config(model, "fp16")), latents(config("embedded:tiny_fill")))


def test_a_variant_changes_the_fingerprint_and_what_is_loaded(compose: Compose, model: Path) -> None:
    plain = latents(config(model))
    give_variant(model, "transformer", "ema")
    shutil.copytree(embedded("tiny_fill") / "transformer", model / "transformer", dirs_exist_ok=True)
    change_tensors(model, "transformer", lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    assert torch.equal(latents(config(model, "ema")), plain)
    assert not torch.equal(latents(config(model)), plain)
    path = f"model.path={model}"
    assert fingerprint(compose(path)) != fingerprint(compose(path, "model.variant=ema"))


@pytest.mark.parametrize(
    "overrides", [("model.revision=main",), ("model=flux_fill", "model.weights=random", "model.variant=fp16")]
)
def test_a_key_without_effect_is_refused(compose: Compose, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="has no effect"):
        check(compose(*overrides))


def test_mixed_dtypes_load(compose: Compose, model: Path) -> None:
    expected = latents(config(model))

    def mixed(tensors: Tensors) -> Tensors:
        return {name: tensor.float() if index % 2 else tensor for index, (name, tensor) in enumerate(tensors.items())}

    change_tensors(model, "transformer", mixed)
    check(compose(f"model.path={model}"))
    assert torch.equal(latents(config(model)), expected)


@pytest.mark.parametrize(
    ("component", "missing"), [("text_encoder", "final_layer_norm.weight"), ("vae", "encoder.conv_in.weight")]
)
def test_loading_finds_what_a_layout_does_not_cover(
    model: Path, component: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config of another kind has no layout. Then the library itself says which tensors it did not find."""
    change_tensors(model, component, without(missing))
    unknown = replace(WEIGHT_COMPONENTS[component], layout=lambda _: None)
    monkeypatch.setitem(WEIGHT_COMPONENTS, component, unknown)
    with pytest.raises(ModelError, match=rf"{component} .* 1 tensors are missing \(.*{missing}\)"):
        load_flux(config(model), NO_OPTIMIZATION, CPU)


def test_loading_finds_a_tokenizer_that_knows_no_word(model: Path) -> None:
    change_json(model / "tokenizer_2" / "tokenizer.json", lambda values: values["model"].update(vocab=VOCABULARY))
    with pytest.raises(ModelError, match="tokenizer_2 knows none of the words"):
        load_flux(config(model), NO_OPTIMIZATION, CPU)


def test_loading_finds_a_tokenizer_without_a_limit(model: Path) -> None:
    change_json(model / "tokenizer" / "tokenizer_config.json", lambda values: values.pop("model_max_length"))
    with pytest.raises(ModelError, match="has no model_max_length of at most 32"):
        load_flux(config(model), NO_OPTIMIZATION, CPU)


VOCABULARY = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]


def test_a_damaged_model_is_one_error_before_anything_is_made(program: Program, model: Path) -> None:
    change_tensors(model, "text_encoder", without("final_layer_norm.weight"))
    done = program.run_command(program.command("+experiment=fill", f"model.path={model}", "tracking=disabled"))
    assert done.returncode == 2
    assert done.stderr.count("final_layer_norm.weight") == 1
    assert list(program.cwd.iterdir()) == [model]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a model in the local hub cache."""
    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return make_hub_cache(root, HUB_ID, COMMIT)


def test_a_model_on_a_hub_is_known_by_its_commit(compose: Compose, hub: Path) -> None:
    asked = compose("model=flux_fill", f"model.path={HUB_ID}")
    check(asked)
    fixed = pinned(asked, download=True).model
    assert isinstance(fixed, FluxModelConfig)
    assert fixed.revision == COMMIT
    assert fingerprint(asked) == fingerprint(replace(asked, model=fixed))
    (hub.parents[1] / "refs" / "main").write_text("f" * 40)
    (hub.parent / ("f" * 40)).symlink_to(hub)
    moved = pinned(asked, download=True).model
    assert isinstance(moved, FluxModelConfig)
    assert moved.revision == "f" * 40
    assert fingerprint(replace(asked, model=moved)) != fingerprint(replace(asked, model=fixed))
    assert pinned(replace(asked, model=fixed), download=True).model == fixed, "a commit stays"


def test_a_damaged_model_in_the_hub_cache(compose: Compose, hub: Path) -> None:
    (hub / "vae" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"vae/config\.json is missing"):
        pinned(compose("model=flux_fill", f"model.path={HUB_ID}"), download=True)


def test_a_run_records_the_commit(program: Program, tmp_path: Path) -> None:
    make_hub_cache(tmp_path / "home" / "hub", HUB_ID, COMMIT)
    tiny = ("dataset.height=64", "dataset.width=64", "sampling.steps=1", "dataset.limit=1", "model.dtype=float32")
    off = ("metrics=none", "report=off", "tracking=disabled", "output.dir=made")
    command = program.command("+experiment=fill", "model=flux_fill", f"model.path={HUB_ID}", *tiny, *off)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = program.run_command(command, environment)
    assert done.returncode == 0, done.stderr
    (summary,) = program.cwd.glob("made*/**/summary.json")
    assert json.loads(summary.read_text())["model"] == {
        "name": "flux_fill",
        "path": HUB_ID,
        "base": None,
        "files": None,
        "commit": COMMIT,
        "variant": None,
    }


def test_a_gated_model_without_weights_is_one_error_that_says_what_to_do(program: Program) -> None:
    done = program.run_command(program.command("+experiment=fill", "model=flux_fill", "tracking=disabled"))
    assert done.returncode == 2
    assert done.stderr.count("model.path=") == 1
    for word in ("huggingface.co/black-forest-labs/FLUX.1-Fill-dev", "hf auth login", "set model.path to a directory"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(program.cwd.iterdir())


def test_headers_of_the_embedded_model() -> None:
    shapes = tensor_shapes(embedded("tiny_fill") / "transformer", "diffusion_pytorch_model", None)
    assert shapes["x_embedder.weight"] == (160, 384)
