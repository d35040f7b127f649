"""The program as a user starts it: real processes and their output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORT_GUARD = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "diffusers", "transformers", "accelerate", "wandb"):
            raise SystemExit(f"imported {name}")
sys.meta_path.insert(0, Guard())
sys.argv[0] = "fluxexp"
from fluxexp.cli import main
main()
"""


def fluxexp(*arguments: str, cwd: Path, guarded: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_GUARD] if guarded else [sys.executable, "-m", "fluxexp"]
    return subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sampling.step=4"], "did you mean 'sampling.steps'?"),
        (["sampling.steps=0"], "must be between 1 and 1000"),
        (["model.path=nowhere"], "is not a directory"),
        (["dataset=folder", "dataset.path=nowhere"], "dataset.path='nowhere': is not a folder"),
        (["dataset=table"], "dataset.path: is not set"),
        (["optimization.step_cache=taylorseer"], "write optimization/step_cache=taylorseer"),
        (["-m", "sampling.steps=4,0"], "sampling.steps=0"),
    ],
)
def test_config_errors_are_reported_before_torch_is_imported(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = fluxexp(*arguments, cwd=tmp_path, guarded=True)
    assert words in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_error_for_a_missing_column_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("promt,image,mask\na,b,c\n")
    done = fluxexp("dataset=table", "dataset.path=t.csv", cwd=tmp_path, guarded=True)
    assert "has no column 'prompt'" in done.stderr
    assert "did you mean 'promt'?" in done.stderr
    assert done.returncode == 2


@pytest.mark.slow
def test_help_cfg_and_info_work_as_in_hydra(tmp_path: Path) -> None:
    shown = fluxexp("--help", cwd=tmp_path, guarded=True)
    assert "accelerate launch -m fluxexp +experiment=fill" in shown.stdout
    assert "* flow_match_euler" in shown.stdout
    shown = fluxexp("--cfg", "job", "sampling.steps=7", cwd=tmp_path, guarded=True)
    assert "steps: 7" in shown.stdout
    mistaken = fluxexp("--cfg", "job", "sampling.step=7", cwd=tmp_path, guarded=True)
    assert "did you mean 'sampling.steps'?" in mistaken.stderr
    assert mistaken.returncode == 2
    shown = fluxexp("--info", "defaults", "+experiment=fill", cwd=tmp_path, guarded=True)
    assert "experiment/fill" in shown.stdout


def test_debug_plan_prints_the_plan_and_imports_no_torch(tmp_path: Path) -> None:
    done = fluxexp("debug=plan", "sampling.images_per_sample=2", cwd=tmp_path, guarded=True)
    assert done.returncode == 0, done.stderr
    assert "32, of which 0 are done" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_error_of_all_ranks_is_printed_once(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "fluxexp",
        "sampling.step=4",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.count("did you mean 'sampling.steps'?") == 1
    assert done.returncode != 0
