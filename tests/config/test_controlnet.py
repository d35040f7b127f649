"""A ControlNet is checked from its headers, against its transformer, and against the keys about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models import FluxControlNetModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from fluxexp.config import RunConfig, check, fingerprint
from fluxexp.config.controlnet_files import controlnet_files, layout_config
from fluxexp.config.fingerprint import unread_model_bytes
from fluxexp.config.model_digest import model_digest
from fluxexp.config.model_paths import model_directory
from fluxexp.config.model_pinning import pinned
from fluxexp.config.schema import FluxModelConfig
from fluxexp.config.tensor_layouts import controlnet_layout
from fluxexp.errors import ConfigError, ModelError
from fluxexp.models.loading.deprecations import own_deprecations_hidden
from fluxexp.models.loading.model_loader import load_model
from tests.models.conftest import inputs_of, point, run

Compose = Callable[..., RunConfig]
TINY = model_directory("embedded:tiny_dev")
assert TINY is not None
TRANSFORMER: Mapping[str, Any] = json.loads((TINY / "transformer" / "config.json").read_text())
WEIGHTS = "diffusion_pytorch_model.safetensors"
BASE = ("+experiment=controlnet", "model.weights=pretrained", "model.path=embedded:tiny_dev", "model.layout=null")


def config_of(kind: str) -> dict[str, Any]:
    known = {name: value for name, value in TRANSFORMER.items() if not name.startswith("_")}
    return {**layout_config(kind, known), "num_layers": 1, "num_single_layers": 0 if kind == "xlabs" else 1}


def make_controlnet(path: Path, kind: str = "plain", **changes: Any) -> Path:
    """A ControlNet of random weights for the embedded FLUX.1-dev, as people have it on disk."""
    torch.manual_seed(0)
    with own_deprecations_hidden():
        controlnet = FluxControlNetModel(**{**config_of(kind), **changes})
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    controlnet.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_controlnet(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def union(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_controlnet(tmp_path_factory.mktemp("union"), "union")


def refusal(compose: Compose, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(compose(*overrides))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["plain", "union", "xlabs"])
def test_the_layout_is_that_of_the_library(kind: str) -> None:
    config = config_of(kind) | {"num_layers": 2}
    with torch.device("meta"), own_deprecations_hidden():
        module = FluxControlNetModel(**config)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert controlnet_layout(config) == expected
    assert controlnet_layout(dict(module.config)) == expected


def test_a_directory_fits(compose: Compose, plain: Path, union: Path) -> None:
    check(compose(*BASE, f"model.controlnet.path={plain}"))
    check(compose(*BASE, f"model.controlnet.path={union}", "sampling.control_mode=3"))
    check(compose("+experiment=controlnet", "model=flux_controlnet"))
    check(compose("+experiment=controlnet", "model.controlnet.layout=union", "sampling.control_mode=9"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.controlnet=null"], "model.controlnet='null': must be set for model.family=flux_controlnet"),
        (["model.controlnet.path=no/such/place"], "model.controlnet.path='no/such/place': is not a directory"),
        (["sampling.control_mode=2"], "sampling.control_mode=2: has no effect"),
        (
            ["sampling.control_guidance_start=0.8"],
            "sampling.control_guidance_start=0.8: is not below sampling.control_guidance_end=0.8",
        ),
        (["model.controlnet.revision=main"], "model.controlnet.revision='main': has no effect"),
    ],
)
def test_keys_that_do_not_work(compose: Compose, plain: Path, overrides: list[str], expected: str) -> None:
    given = [*BASE, f"model.controlnet.path={plain}", *overrides]
    assert expected in refusal(compose, *given)


@pytest.mark.parametrize("mode", ["null", "10"])
def test_a_union_needs_one_of_its_modes(compose: Compose, union: Path, mode: str) -> None:
    answer = refusal(compose, *BASE, f"model.controlnet.path={union}", f"sampling.control_mode={mode}")
    assert "must be one of the 10 kinds" in answer
    answer = refusal(
        compose, "+experiment=controlnet", "model.controlnet.layout=union", f"sampling.control_mode={mode}"
    )
    assert "must be one of the 10 kinds" in answer


@pytest.mark.parametrize(
    "override",
    [
        "sampling.controlnet_scale=0.5",
        "sampling.control_guidance_start=0.1",
        "sampling.control_guidance_end=0.9",
        "sampling.control_mode=0",
    ],
)
@pytest.mark.parametrize("experiment", ["fill", "control"])
def test_other_families_have_no_controlnet(compose: Compose, experiment: str, override: str) -> None:
    answer = refusal(compose, f"+experiment={experiment}", override)
    assert f"{override}: has no effect" in answer
    assert "has no ControlNet" in answer


def test_a_controlnet_without_a_family_for_it(compose: Compose) -> None:
    assert "model.controlnet: has no effect" in refusal(
        compose, "+experiment=controlnet", "model.family=flux_control", "model.layout=small_control"
    )


def test_random_weights_need_a_layout(compose: Compose) -> None:
    answer = refusal(compose, "+experiment=controlnet", "model.controlnet.layout=null")
    assert "model.controlnet.layout='null': must be set for random weights" in answer


def without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        del tensors[name]
        save_file(tensors, path / WEIGHTS)

    return change


def config_with(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without("controlnet_blocks.0.bias"), "tensors are missing (controlnet_blocks.0.bias)"),
        (lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9]), "is truncated"),
        (lambda path: (path / WEIGHTS).unlink(), "has no weights in safetensors"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
        (config_with(_class_name="SD3ControlNetModel"), "is of a SD3ControlNetModel"),
        (config_with(num_layers=2), "tensors are missing"),
        (config_with(quantization_config={"quant_method": "torchao"}), "quant_method=torchao"),
    ],
)
def test_damaged_files(compose: Compose, tmp_path: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(make_controlnet(tmp_path / "net"))
    answer = refusal(compose, *BASE, f"model.controlnet.path={tmp_path / 'net'}")
    assert "model.controlnet.path=" in answer
    assert expected in answer


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_attention_heads": 1}, "wide, but the transformer is"),
        ({"joint_attention_dim": 7}, "has joint_attention_dim=7, but the transformer has"),
        ({"in_channels": 128}, "has in_channels=128, but the transformer has 64"),
        ({"num_layers": 0, "num_single_layers": 0}, "has no blocks"),
        ({"conditioning_embedding_channels": 16}, "patch_size must be 2"),
    ],
)
def test_a_controlnet_for_another_transformer(
    compose: Compose, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    make_controlnet(tmp_path / "net", **changes)
    assert expected in refusal(compose, *BASE, f"model.controlnet.path={tmp_path / 'net'}")


def model_with(compose: Compose, path: Path, *more: str) -> RunConfig:
    return compose(*BASE, f"model.controlnet.path={path}", "optimization=none", *more)


def test_content_and_scale_change_the_fingerprint(compose: Compose, plain: Path, tmp_path: Path) -> None:
    config = model_with(compose, plain)
    same = make_controlnet(tmp_path / "same")
    other = make_controlnet(tmp_path / "other", guidance_embeds=False)
    assert fingerprint(model_with(compose, same)) == fingerprint(config)
    assert fingerprint(model_with(compose, other)) != fingerprint(config)
    assert fingerprint(model_with(compose, plain, "sampling.controlnet_scale=0.1")) != fingerprint(config)
    assert unread_model_bytes(config.model) >= 0


def test_the_hash_of_a_model_has_the_files_of_its_controlnet(compose: Compose, plain: Path, union: Path) -> None:
    assert TINY is not None
    digest = model_digest(TINY, {}, plain)
    assert digest not in (model_digest(TINY, {}), model_digest(TINY, {}, union))
    load_model(model_with(compose, plain, f"model.sha256={digest}"), torch.device("cpu"), 0)
    with pytest.raises(ModelError, match=r"model\.sha256"):
        load_model(model_with(compose, plain, f"model.sha256={model_digest(TINY, {})}"), torch.device("cpu"), 0)


def test_a_sharded_controlnet_is_loaded_as_it_is_stored(compose: Compose, plain: Path, tmp_path: Path) -> None:
    with own_deprecations_hidden():
        stored = FluxControlNetModel.from_pretrained(plain)
        stored.save_pretrained(tmp_path / "net", max_shard_size="300KB")
    assert len(controlnet_files(tmp_path / "net")) > 3
    config = model_with(compose, tmp_path / "net")
    check(config)
    model: Any = load_model(config, torch.device("cpu"), 0)
    assert isinstance(config.model, FluxModelConfig)
    ours, theirs = model.pipeline.controlnet.state_dict(), stored.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].to(ours[name].dtype)) for name in ours)
    items = inputs_of("flux_controlnet")
    points = [point(2)] * 3
    off = [replace(each, control=replace(each.control, scale=0.0)) for each in points]
    assert (run(model, items, points) != run(model, items, off)).any()


def test_a_controlnet_on_a_hub_is_known_by_its_commit(
    compose: Compose, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place, commit = tmp_path / "models--acme--Net", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(plain, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    asked = model_with(compose, Path("acme/Net"))
    check(asked)
    fixed = pinned(asked, download=True).model
    assert isinstance(fixed, FluxModelConfig)
    assert fixed.controlnet is not None
    assert fixed.controlnet.revision == commit
    assert fingerprint(asked) == fingerprint(replace(asked, model=fixed))
    load_model(replace(asked, model=fixed), torch.device("cpu"), 0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"model\.controlnet\.path='acme/Other': is not in the local hub cache"):
        pinned(model_with(compose, Path("acme/Other")), download=True)


def test_a_points_use_of_the_controlnet_is_that_of_the_config(compose: Compose, tmp_path: Path) -> None:
    from fluxexp.plan.run_plan import _point

    use = _point(compose("+experiment=controlnet", "sampling.control_guidance_start=0.25")).control
    assert (use.scale, use.start, use.end, use.mode) == (0.7, 0.25, 0.8, None)
    assert use.scales(8) == [0.0, 0.0, 0.7, 0.7, 0.7, 0.7, 0.0, 0.0]


def test_the_controlnet_is_a_part_of_the_work_at_the_steps_where_it_is_computed(compose: Compose) -> None:
    from fluxexp.config.work import denoising_work
    from fluxexp.plan.run_plan import _point

    def work(*overrides: str) -> float:
        config = compose("+experiment=controlnet", "sampling.steps=8", "sampling.control_guidance_end=1", *overrides)
        return denoising_work(config.model, _point(config), 64, 64)

    without = work("sampling.controlnet_scale=0")
    assert work() / without == pytest.approx(1 + 15 / 57)
    assert work("sampling.control_guidance_end=0.5") / without == pytest.approx(1 + 15 / 57 / 2)
    assert work("model.controlnet.layout=xlabs") / without == pytest.approx(1 + 2 / 57)
    guided = work("sampling.true_cfg_scale=2", "sampling.negative_prompt=x")
    assert guided / without == pytest.approx(2 + 15 / 57), "a second pass has the residuals of the first"
