"""Trains each LoRA for two steps on the CPU, and reads the result like any other LoRA."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fluxexp.config.lora_files import lora_header
from tools.train_tiny_lora.__main__ import main
from tools.train_tiny_lora.settings import LORAS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # trains
def test_every_lora_is_trained_logged_and_written(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="training needs peft: pip install 'fluxexp[dev]'")
    command = [sys.executable, "-m", "tools.train_tiny_lora", "--steps", "2", "--scenes", "16", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    for name, settings in LORAS.items():
        file = tmp_path / f"{name}.safetensors"
        lines = [json.loads(line) for line in (tmp_path / f"{name}_log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["stage"] == "lora"] == [1, 2]
        assert json.loads((tmp_path / f"{name}_run.json").read_text())["settings"]["base"] == settings.base
        assert lora_header(str(file)).layers.keys() == lora_header(f"embedded:{name}").layers.keys()
        assert any(value.abs().max() > 0 for key, value in load_file(file).items() if "lora_B" in key)


@pytest.mark.parametrize(("option", "said"), [("--seed=0", "is reserved"), ("tiny_huge", "is not a LoRA")])
def test_wrong_options_are_errors_before_training(
    option: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_tiny_lora", "--out", str(tmp_path / "out"), option])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
