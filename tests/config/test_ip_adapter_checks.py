"""The group ip_adapter fits the model, and its files are checked from their headers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from fluxexp.config import RunConfig
from fluxexp.config.checks import check
from fluxexp.config.families import FAMILIES
from fluxexp.config.fingerprint import fingerprint
from fluxexp.config.ip_adapter_checks import CLIP_VISION, ip_adapter_layout, num_picture_tokens
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.model_pinning import pinned
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import FluxModelConfig
from fluxexp.errors import ConfigError, ModelError
from fluxexp.models.loading.picture_encoders import add_ip_adapter, add_random_ip_adapter
from fluxexp.models.loading.pipeline_loader import load_flux
from fluxexp.models.loading.random_weights import pipeline_without_weights
from tests.cases.model_directories import embedded
from tests.models.conftest import inputs_of, load_tiny, point, run

Compose = Callable[..., RunConfig]
SMALL = "+experiment=ip_adapter"
TINY = (SMALL, "model=tiny_dev", "ip_adapter=none")
VISION = LAYOUTS["small_dev"].clip_vision
EMBED = int(VISION["projection_dim"])


def problems_of(compose: Compose, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(compose(*overrides))
    return str(caught.value)


def tiny_config() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((embedded("tiny_dev") / "transformer" / "config.json").read_text())
    return values


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small image encoder."""
    directory = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(directory)
    return directory


def adapter_tensors(text_width: int | None = None) -> dict[str, torch.Tensor]:
    """An IP-Adapter for the embedded FLUX.1-dev, with the names of diffusers."""
    config = tiny_config()
    width = config["attention_head_dim"] * config["num_attention_heads"]
    shapes = ip_adapter_layout(config["num_layers"], width, text_width or config["joint_attention_dim"], 4, EMBED)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def xlabs(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with the names of XLabs."""
    renamed = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "image_proj":
            renamed[f"ip_adapter_proj_model.{rest}"] = tensor
        else:
            number, layer, kind = rest.split(".")
            renamed[f"double_blocks.{number}.processor.ip_adapter_double_stream_{layer[3]}_proj.{kind}"] = tensor
    return renamed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An IP-Adapter in the format of XLabs."""
    path = tmp_path / "ip_adapter.safetensors"
    save_file(xlabs(adapter_tensors()), path)
    return path


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["ip_adapter.scale=0.5"], "ip_adapter.scale=0.5: has no effect without a path"),
        ([SMALL, "dataset=shapes"], "does not give the input 'references'"),
        ([SMALL, "model=tiny_dev"], "does not work with model.weights=pretrained"),
        ([SMALL, "ip_adapter.path=x.safetensors"], "does not work with model.weights=random"),
        ([SMALL, "ip_adapter.image_encoder=x"], "has no effect on random weights"),
        (["ip_adapter.path=x.safetensors"], "does not work with model.family=flux_fill"),
        ([*TINY, "ip_adapter.path=x.safetensors"], "must be set"),
        ([*TINY, "ip_adapter.path=x.safetensors", "ip_adapter.image_encoder=x"], "is not a directory"),
    ],
)
def test_what_cannot_work_is_refused(compose: Compose, overrides: list[str], expected: str) -> None:
    assert expected in problems_of(compose, *overrides)


@pytest.mark.parametrize("names", [xlabs, dict], ids=["xlabs", "diffusers"])
def test_a_file_is_loaded_as_the_library_loads_it(
    compose: Compose, encoder: Path, tmp_path: Path, names: Callable[..., dict[str, torch.Tensor]]
) -> None:
    path = tmp_path / "own.safetensors"
    save_file(names(adapter_tensors()), path)
    config = compose(*TINY, f"ip_adapter.path={path}", f"ip_adapter.image_encoder={encoder}")
    check(config)
    assert isinstance(config.model, FluxModelConfig)
    model = load_flux(config.model, NONE, torch.device("cpu"), ip_adapter=config.ip_adapter)
    library = load_tiny("tiny_dev").pipeline
    library.load_ip_adapter(
        str(tmp_path),
        weight_name=path.name,
        image_encoder_pretrained_model_name_or_path=str(encoder),
        image_encoder_dtype=torch.float32,
    )
    ours, theirs = model.transformer.state_dict(), library.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert model.pipeline.feature_extractor.to_dict() == library.feature_extractor.to_dict()
    items = inputs_of("flux_kontext")
    run(model, items, [point(1)] * 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: {**tensors, "other": torch.zeros(1)}, "not an IP-Adapter for FLUX.1 in a known format: other"),
        (lambda tensors: dict(list(tensors.items())[:-1]), "is missing"),
        (lambda tensors: xlabs(adapter_tensors(8)), "instead of"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    compose: Compose, encoder: Path, file: Path, change: Callable[..., dict[str, torch.Tensor]], expected: str
) -> None:
    save_file(change(load_file(file)), file)
    overrides = (*TINY, f"ip_adapter.path={file}", f"ip_adapter.image_encoder={encoder}")
    assert expected in problems_of(compose, *overrides)
    with pytest.raises(ModelError, match=r"ip_adapter\.path"):
        add_ip_adapter(load_tiny("tiny_dev").pipeline, compose(*overrides).ip_adapter)


def test_layer_scales_have_one_value_for_each_double_block(compose: Compose, encoder: Path, file: Path) -> None:
    overrides = (*TINY, f"ip_adapter.path={file}", f"ip_adapter.image_encoder={encoder}")
    number = tiny_config()["num_layers"]
    check(compose(*overrides, f"ip_adapter.layer_scales={[0.5] * number}"))
    said = problems_of(compose, *overrides, f"ip_adapter.layer_scales={[0.5] * (number + 1)}")
    assert f"has {number + 1} values, but the model has {number} double blocks" in said


def test_files_and_factors_are_in_the_fingerprint(compose: Compose, encoder: Path, file: Path) -> None:
    overrides = (*TINY, f"ip_adapter.path={file}", f"ip_adapter.image_encoder={encoder}")
    first = fingerprint(compose(*overrides))
    moved = file.rename(file.with_name("moved.safetensors"))
    others = (*TINY, f"ip_adapter.path={moved}", f"ip_adapter.image_encoder={encoder}")
    assert fingerprint(compose(*others)) == first
    assert fingerprint(compose(*others, "ip_adapter.scale=0.5")) != first
    save_file({name: tensor + 1 for name, tensor in load_file(moved).items()}, moved)
    assert fingerprint(compose(*others)) != first
    with pytest.raises(ConfigError, match="cannot be read"):
        fingerprint(compose(*overrides))


def test_an_image_encoder_on_a_hub_is_known_by_its_commit(
    compose: Compose, encoder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place, commit = tmp_path / "models--acme--Clip", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(encoder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    asked = compose(*TINY, f"ip_adapter.path={file}", "ip_adapter.image_encoder=acme/Clip")
    check(asked)
    fixed = pinned(asked, download=True)
    assert fixed.ip_adapter.image_encoder_revision == commit
    assert fingerprint(fixed) == fingerprint(asked)
    add_ip_adapter(load_tiny("tiny_dev").pipeline, fixed.ip_adapter)
    absent = compose(*TINY, f"ip_adapter.path={file}", "ip_adapter.image_encoder=acme/Absent")
    check(absent)
    with pytest.raises(ConfigError, match=r"ip_adapter\.image_encoder='acme/Absent': is not in the local hub cache"):
        pinned(absent, download=True)
    assert "does not exist" in problems_of(
        compose, *TINY, "ip_adapter.path=gone.safetensors", "ip_adapter.image_encoder=acme/Absent"
    )


def test_the_layout_of_the_image_encoder_is_that_of_the_library(encoder: Path) -> None:
    stored = {
        name.removeprefix("vision_model."): tuple(tensor.shape)
        for name, tensor in load_file(encoder / "model.safetensors").items()
    }
    assert CLIP_VISION.layout(json.loads((encoder / "config.json").read_text())) == stored


def test_a_whole_clip_is_an_image_encoder(compose: Compose, file: Path, tmp_path: Path) -> None:
    text = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    clip = CLIPModel(
        CLIPConfig(
            text_config={**text, "num_attention_heads": 2, "projection_dim": EMBED},
            vision_config=dict(VISION),
            projection_dim=EMBED,
        )
    )
    clip.save_pretrained(tmp_path / "clip")
    overrides = (*TINY, f"ip_adapter.path={file}", f"ip_adapter.image_encoder={tmp_path / 'clip'}")
    check(compose(*overrides))
    add_ip_adapter(load_tiny("tiny_dev").pipeline, compose(*overrides).ip_adapter)


def test_the_families_with_ip_adapters_are_those_whose_pipelines_have_them() -> None:
    """Except those with a ControlNet: diffusers also gives the IP-Adapter's inputs to the ControlNet."""
    for family in FAMILIES.values():
        if family.pipeline is not None and "ControlNet" not in family.pipeline:
            assert family.takes_ip_adapter == hasattr(getattr(diffusers, family.pipeline), "load_ip_adapter"), (
                family.name
            )


def test_the_full_size_is_that_of_the_published_adapter() -> None:
    """XLabs' flux-ip-adapter-v2 has 16 tokens, and two projections of 4096 to 3072 values in each of 19 blocks."""
    shapes = ip_adapter_layout(19, 3072, 4096, num_picture_tokens(65536), 768)
    assert sum(math.prod(shape) for shape in shapes.values()) == 19 * 2 * (4096 + 1) * 3072 + 65536 * 769 + 2 * 4096
    pipeline = pipeline_without_weights(LAYOUTS["flux_dev"], torch.bfloat16, FAMILIES["flux"])
    add_random_ip_adapter(pipeline, LAYOUTS["flux_dev"])
    assert pipeline.transformer.encoder_hid_proj.image_projection_layers[0].num_image_text_embeds == 16
