"""Every config file composes and passes the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fluxexp.cli.compose import check_command, to_run_config
from fluxexp.cli.location import config_directory
from fluxexp.config import RunConfig

CONF = config_directory()
GROUP_FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*/*.yaml"))
GROUPS = {
    "model",
    "scheduler",
    "lora",
    "redux",
    "ip_adapter",
    "sampling",
    "dataset",
    "engine",
    "parallelism",
    "failures",
    "optimization",
    "optimization/step_cache",
    "metrics",
    "cost",
    "report",
    "tracking",
    "output",
    "experiment",
    "debug",
}
TYPED = (
    "model.path",
    "model.dtype",
    "sampling.steps",
    "sampling.guidance",
    "sampling.seed",
    "sampling.height",
    "sampling.width",
    "sampling.batch_size",
    "sampling.images_per_sample",
    "dataset.limit",
    "parallelism.schedule",
    "output.dir",
    "output.format",
    "tracking.mode",
    "tracking.project",
    "seed",
)
NEEDS = {
    "dataset/prompts.yaml": ["+experiment=text_to_image"],
    "model/flux_dev.yaml": ["output.paste=false"],
    "model/flux_schnell.yaml": ["output.paste=false"],
    "model/flux_img2img.yaml": ["output.paste=false"],
    "model/flux_control.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/flux_control_img2img.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/flux_control_inpaint.yaml": ["dataset=shapes_outlines"],
    "model/flux_kontext.yaml": ["output.paste=false", "dataset=shapes_references"],
    "model/small_kontext.yaml": ["output.paste=false", "dataset=shapes_references"],
    "model/small_control.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/small_control_img2img.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/small_control_inpaint.yaml": ["dataset=shapes_outlines"],
    "model/flux_redux.yaml": ["output.paste=false", "dataset=shapes_references", "model.weights=random"],
    "model/flux_fill_redux.yaml": ["dataset=shapes_references", "model.weights=random"],
    "model/small_redux.yaml": ["output.paste=false", "dataset=shapes_references"],
    "model/small_fill_redux.yaml": ["dataset=shapes_references"],
    "model/small_dev.yaml": ["output.paste=false"],
    "ip_adapter/random.yaml": ["+experiment=ip_adapter"],
    "model/flux_controlnet.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/flux_controlnet_img2img.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/flux_controlnet_inpaint.yaml": ["dataset=shapes_outlines"],
    "model/small_controlnet.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/small_controlnet_img2img.yaml": ["output.paste=false", "dataset=shapes_outlines"],
    "model/small_controlnet_inpaint.yaml": ["dataset=shapes_outlines"],
    "model/tiny_control.yaml": ["output.paste=false", "dataset=shapes_outlines", "lora=tiny_control"],
    "model/tiny_control_img2img.yaml": ["output.paste=false", "dataset=shapes_outlines", "lora=tiny_control"],
    "model/tiny_control_inpaint.yaml": ["dataset=shapes_outlines", "lora=tiny_control"],
    "lora/tiny_control.yaml": ["+experiment=control"],
    "model/tiny_dev.yaml": ["output.paste=false"],
    "model/tiny_img2img.yaml": ["output.paste=false"],
}


def test_the_groups_are_the_documented_ones() -> None:
    assert {path.parent.as_posix() for path in GROUP_FILES} == GROUPS


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_every_file_composes_and_is_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fluxexp.config.engine_checks.find_spec", lambda name: name
    )  # Ray is not a part of the dev extra
    group, choice = file.parent.as_posix(), file.stem
    plus = "+" if group == "experiment" else ""
    check_command(CONF, "config", [*NEEDS.get(str(file), []), f"{plus}{group}={choice}"], multirun=False)


@pytest.mark.parametrize("file", GROUP_FILES, ids=str)
def test_every_file_states_its_values_in_plain_yaml(file: Path) -> None:
    text = (CONF / file).read_text()
    assert "_target_" not in text, "configs name things in fluxexp's own tables; they never name code"
    assert yaml.safe_load(text)


def test_the_keys_that_users_type_exist() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=["+experiment=fill"])
    assert isinstance(to_run_config(config), RunConfig)
    for key in TYPED:
        node = config
        for part in key.split("."):
            assert part in node, key
            node = node[part]
