"""Runs the whole training at a small size on the CPU, and loads the result like any other model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models.conftest import fill_inputs, load_tiny, point, run, text_inputs
from tools.train_tiny_fill.__main__ import main
from tools.train_tiny_fill.vocabulary import clip_tokenizer, t5_tokenizer, words

ROOT = Path(__file__).parents[2]


def train(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.train_tiny_fill", "--preset", "cpu", "--out", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    done = train(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow  # trains
def test_every_stage_logs_its_losses(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    stages = {line["stage"]: line for line in lines}
    assert lines[-1]["stage"] == "done"
    for stage, names in {
        "vae": ("l1", "edge", "kl", "psnr"),
        "flow": ("fill", "dev"),
        "distill": ("fill", "dev"),
    }.items():
        assert stages[stage]["step"] == 2
        assert all(stages[stage][name] >= 0 for name in names)


@pytest.mark.slow  # trains
@pytest.mark.parametrize("name", ["tiny_fill", "tiny_dev"])
def test_the_trained_models_load_and_generate_images(trained: Path, name: str) -> None:
    model = load_tiny(name, path=str(trained / "models" / name))
    inputs = fill_inputs() if name == "tiny_fill" else text_inputs()
    assert torch.isfinite(run(model, inputs, [point(1)] * 3)).all()


@pytest.mark.slow  # trains
def test_all_weights_are_bfloat16_and_shared_parts_are_links(trained: Path) -> None:
    models = trained / "models"
    for file in models.rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}, file
    own = {file.parent.name for file in (models / "tiny_dev").rglob("*") if file.is_file() and not file.is_symlink()}
    assert own == {"tiny_dev", "scheduler", "transformer"}


def test_the_seed_of_the_evaluation_scenes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_tiny_fill", "--out", str(tmp_path / "out"), "--seed", "0"])
    with pytest.raises(SystemExit, match="--seed 0 is reserved"):
        main()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # trains
def test_checkpoints_of_other_settings_are_an_error(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["train_tiny_fill", "--preset", "cpu", "--out", str(trained), "--seed", "7"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="contains checkpoints of other settings"):
        main()


def test_every_word_of_a_caption_is_one_token() -> None:
    for tokenizer in (clip_tokenizer(), t5_tokenizer()):
        ends = len(tokenizer("").input_ids)
        assert all(len(tokenizer(word).input_ids) == 1 + ends for word in words())


def test_tokenizing_keeps_all_letters_of_a_prompt() -> None:
    text = "Zebra, 42 stars & a naïve 猫!"
    clip = clip_tokenizer()
    assert clip.decode(clip(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")
