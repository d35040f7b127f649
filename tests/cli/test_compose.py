from __future__ import annotations

from pathlib import Path

import pytest

from fluxexp.cli.compose import check_command
from fluxexp.cli.location import config_directory
from fluxexp.errors import ConfigError


def answer(*overrides: str, multirun: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        check_command(config_directory(), "config", overrides, multirun)
    return str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("+experiment=fill",),
        ("+experiment=text_to_image", "sampling.steps=2"),
        ("model=fake", "model.seconds_per_step=[0.1,0.2]"),
        ("sampling.guidance=3", "sampling.height=null"),
        ("debug=quick",),
        ("++sampling.steps=3",),
        ("hydra.verbose=true",),
    ],
)
def test_valid_commands_pass(overrides: tuple[str, ...]) -> None:
    check_command(config_directory(), "config", overrides, multirun=False)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampling.step=4", "did you mean 'sampling.steps'?"),
        ("steps=4", "did you mean 'sampling.steps'?"),
        ("smpling.steps=4", "did you mean 'sampling.steps'?"),
        ("output.dir=/dev/null/x", "is not writable"),
        ("modle=tiny_fill", "did you mean 'model'?"),  # codespell:ignore
        ("dataset.limt=4", "did you mean 'dataset.limit'?"),  # codespell:ignore
        ("+sampling.zebra=4", "keys here: batch_size"),
        ("sampling.steps.x=4", "sampling.steps is a value, not a group"),
        ("model=tiny_fil", "did you mean 'tiny_fill'? (allowed: fake,"),
        ("+experiment=fil", "did you mean 'fill'?"),
        ("experiment=fill", "write +experiment=fill"),
        ("+model=fake", "write model=fake"),
        ("sampling.steps=0", "sampling.steps=0: must be between 1 and 1000"),
        ("sampling.steps=4.5", "must be a whole number"),
        ("sampling.steps=4,8", "sweep with `-m ... sampling.steps=4,8`"),
        ("output.format=gif", "allowed: jpeg, png, webp"),
        ("model.dtype=fp8", "allowed: bfloat16, float16, float32"),
        ("sampling.height=100", "nearest: 96 or 112"),
        ("sampling.seed=-1", "between 0 and"),
        ("tracking.mode=onlin", "did you mean 'online'?"),
        ("name=a/b", "1 to 64 letters"),
        ("foo bar", "cannot be read as an override"),
        ("sampling.steps=1" + "0" * 5000, "4300 digits"),
        ("model.path=no/such/dir/here", "is not a directory"),
        ("seed=${nothing.here}", "seed"),
    ],
)
def test_each_error_names_the_key_and_a_remedy(override: str, words: str) -> None:
    said = answer(override)
    assert words in said
    assert override.split("=")[0].lstrip("+") in said


def test_all_errors_are_reported_at_once() -> None:
    said = answer("sampling.steps=0", "sampling.guidance=x", "output.format=gif")
    assert "sampling.steps" in said
    assert "sampling.guidance" in said
    assert "output.format" in said


@pytest.mark.slow
def test_every_value_of_a_sweep_is_checked() -> None:
    check_command(config_directory(), "config", ("sampling.steps=1,2", "sampling.guidance=range(1,4)"), multirun=True)
    assert "sampling.steps=0" in answer("sampling.steps=4,8,0", multirun=True)
    assert "guidance" in answer("sampling.seed=range(0,500)", "sampling.guidance=1,nan", multirun=True)
    assert "model='fak'" in answer("model=tiny_fill,fak", multirun=True)
    assert "output.format='gif'" in answer("sampling.steps=1,2", "output.format=png,gif", multirun=True)


def test_the_users_own_configs_are_found_and_their_typos_reported(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\nsampling:\n  steps: 3\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    check_command(config_directory(), "config", ("+experiment=mine", search), multirun=False)
    mine.write_text("# @package _global_\nsampling:\n  stesp: 3\n")
    assert "sampling.stesp" in answer("+experiment=mine", search)


def test_a_sweep_can_choose_group_files_by_pattern() -> None:
    check_command(config_directory(), "config", ("scheduler=glob(flow_match_*)",), multirun=True)


def test_a_plugin_that_a_config_file_names_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /hydra/sweeper: optuna\nname: mine\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    overrides = ("+experiment=mine", f"hydra.searchpath=[file://{tmp_path}]")
    with pytest.raises(ConfigError, match="objective: is not set"):
        check_command(config_directory(), "config", overrides, multirun=True)
    with pytest.raises(ConfigError, match="does not return the objective that a search needs"):
        check_command(config_directory(), "config", (*overrides, "hydra/launcher=basic"), multirun=True)
