"""The group redux fits the family, and the files of FLUX.1-Redux are checked from their headers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from fluxexp.config import RunConfig
from fluxexp.config.checks import check
from fluxexp.config.fingerprint import fingerprint
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.model_pinning import pinned
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.redux_checks import REDUX_COMPONENTS
from fluxexp.config.schema import FluxModelConfig
from fluxexp.errors import ConfigError, ModelError
from fluxexp.models.loading.picture_encoders import draw_redux, load_redux, redux_without_weights
from fluxexp.models.loading.pipeline_loader import load_flux
from tests.cases.model_directories import embedded
from tests.models.conftest import inputs_of, point, run

Compose = Callable[..., RunConfig]
SMALL = "+experiment=redux"


def problems_of(compose: Compose, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(compose(*overrides))
    return str(caught.value)


@pytest.fixture(scope="module")
def redux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small Redux."""
    directory = tmp_path_factory.mktemp("redux")
    prior = redux_without_weights(LAYOUTS["small_dev"], torch.float32)
    draw_redux(prior, torch.device("cpu"), torch.device("cpu"))
    prior.save_pretrained(directory)
    return directory


PRETRAINED = (SMALL, "model=tiny_dev", "model.family=flux_redux")


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small Redux for the embedded FLUX.1-dev."""
    directory = tmp_path_factory.mktemp("fitting")
    config = json.loads((embedded("tiny_dev") / "transformer" / "config.json").read_text())
    layout = LAYOUTS["small_dev"]
    layout = replace(layout, transformer={**layout.transformer, "joint_attention_dim": config["joint_attention_dim"]})
    prior = redux_without_weights(layout, torch.float32)
    draw_redux(prior, torch.device("cpu"), torch.device("cpu"))
    prior.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=tiny_dev", "output.paste=false", "redux.scale=0.5"], "redux.scale=0.5"),
        (["model=tiny_dev", "output.paste=false", "redux.reads_prompt=false"], "use true, or a model of the family"),
        ([SMALL, "redux.path=DIR"], "has no effect on random weights"),
        ([*PRETRAINED], "must be set for model.family=flux_redux"),
        ([*PRETRAINED, "redux.path=nowhere"], "is not a directory"),
        ([SMALL, "redux.reads_prompt=false", "sampling.prompt_2=x"], "has no effect with redux.reads_prompt=false"),
        ([SMALL, "redux.reads_prompt=false", "redux.pooled_scale=2"], "makes the pooled embedding zero"),
        ([SMALL, "dataset=shapes"], "does not give the input 'references'"),
        ([SMALL, "sampling.negative_prompt=x", "sampling.true_cfg_scale=2"], "has no negative prompts"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(compose: Compose, overrides: list[str], expected: str) -> None:
    assert expected in problems_of(compose, *overrides)


def test_a_directory_that_fits_is_loaded_as_it_is(compose: Compose, fitting: Path) -> None:
    config = compose(*PRETRAINED, f"redux.path={fitting}")
    check(config)
    assert isinstance(config.model, FluxModelConfig)
    model = load_flux(config.model, NONE, torch.device("cpu"), redux=config.redux)
    assert model.pictures.redux is not None
    assert model.family.name == "flux_redux"
    loaded = model.pictures.redux.modules[1].state_dict()
    stored = load_file(fitting / "image_embedder" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in loaded.items())
    run(model, inputs_of("flux_redux"), [point(1)] * 3)


def test_a_directory_for_another_width_is_refused(compose: Compose, redux: Path) -> None:
    assert "values per token, but the transformer takes" in problems_of(compose, *PRETRAINED, f"redux.path={redux}")


@pytest.mark.parametrize(
    ("component", "name", "expected"),
    [
        ("image_encoder", "embeddings.position_embedding.weight", "image_encoder (SigLIP) does not fit"),
        ("image_embedder", "redux_down.bias", "image_embedder (Redux) does not fit"),
    ],
)
def test_a_missing_tensor_is_named(
    compose: Compose, fitting: Path, tmp_path: Path, component: str, name: str, expected: str
) -> None:
    directory = shutil.copytree(fitting, tmp_path / "damaged")
    (file,) = (directory / component).glob("*.safetensors")
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    message = problems_of(compose, *PRETRAINED, f"redux.path={directory}")
    assert expected in message
    assert name in message
    with pytest.raises(ModelError, match=r"redux\.path"):
        load_redux(compose(*PRETRAINED, f"redux.path={directory}").redux, 32, torch.float32)


def test_files_and_factors_are_in_the_fingerprint(compose: Compose, fitting: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(fitting, tmp_path / "copied")
    first = fingerprint(compose(*PRETRAINED, f"redux.path={fitting}"))
    assert fingerprint(compose(*PRETRAINED, f"redux.path={copied}")) == first
    (file,) = (copied / "image_embedder").glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    assert fingerprint(compose(*PRETRAINED, f"redux.path={copied}")) != first
    small = {fingerprint(compose(SMALL, *each)) for each in ([], ["redux.scale=0.5"], ["redux.reads_prompt=false"])}
    assert len(small) == 3


def test_redux_on_a_hub_is_known_by_its_commit(
    compose: Compose, fitting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place, commit = tmp_path / "models--acme--Redux", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(fitting, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    asked = compose(*PRETRAINED, "redux.path=acme/Redux")
    check(asked)
    fixed = pinned(asked, download=True)
    assert fixed.redux.revision == commit
    assert fingerprint(fixed) == fingerprint(asked)
    embedder = json.loads((fitting / "image_embedder" / "config.json").read_text())
    load_redux(fixed.redux, embedder["txt_in_features"], torch.float32)
    absent = compose(*PRETRAINED, "redux.path=acme/Absent")
    check(absent)
    with pytest.raises(ConfigError, match=r"redux\.path='acme/Absent': is not in the local hub cache"):
        pinned(absent, download=True)
    assert "redux.revision='abc': has no effect" in problems_of(
        compose, *PRETRAINED, f"redux.path={fitting}", "redux.revision=abc"
    )


def test_layouts_are_those_of_the_libraries(redux: Path) -> None:
    for name, component in REDUX_COMPONENTS.items():
        config = json.loads((redux / name / "config.json").read_text())
        (file,) = (redux / name).glob("*.safetensors")
        stored = {key: tuple(tensor.shape) for key, tensor in load_file(file).items()}
        assert component.layout(config) == stored


def test_the_full_size_is_that_of_the_published_model() -> None:
    prior = redux_without_weights(LAYOUTS["flux_dev"], torch.bfloat16)
    assert sum(each.numel() for each in prior.image_embedder.parameters()) == 64_503_808  # 129 MB in bfloat16
    assert prior.image_encoder.config.image_size // prior.image_encoder.config.patch_size == 27
