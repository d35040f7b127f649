"""The program as a user starts it: real processes and their output."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.program import Program
from tests.warm import WarmLauncher


@cache
def guarded_launcher() -> WarmLauncher:
    return WarmLauncher(guarded=True)


def fluxexp(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that must not import torch."""
    code, stdout, stderr = guarded_launcher().run(arguments, cwd, 1, timeout_s=60)
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


def test_the_guard_ends_a_command_that_imports_torch(tmp_path: Path) -> None:
    done = fluxexp("debug=quick", "model=fake", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "imported accelerate\n")


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
    done = fluxexp(*arguments, cwd=tmp_path)
    assert words in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_the_error_for_a_missing_column_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("promt,image,mask\na,b,c\n")  # codespell:ignore
    done = fluxexp("dataset=table", "dataset.path=t.csv", cwd=tmp_path)
    assert "has no column 'prompt'" in done.stderr
    assert "did you mean 'promt'?" in done.stderr
    assert done.returncode == 2


@pytest.mark.slow
def test_help_cfg_and_info_work_as_in_hydra(tmp_path: Path) -> None:
    shown = fluxexp("--help", cwd=tmp_path)
    assert "accelerate launch -m fluxexp +experiment=fill" in shown.stdout
    assert "* flow_match_euler" in shown.stdout
    shown = fluxexp("--cfg", "job", "sampling.steps=7", cwd=tmp_path)
    assert "steps: 7" in shown.stdout
    mistaken = fluxexp("--cfg", "job", "sampling.step=7", cwd=tmp_path)
    assert "did you mean 'sampling.steps'?" in mistaken.stderr
    assert mistaken.returncode == 2
    shown = fluxexp("--info", "defaults", "+experiment=fill", cwd=tmp_path)
    assert "experiment/fill" in shown.stdout


def test_debug_plan_prints_the_plan_and_imports_no_torch(tmp_path: Path) -> None:
    done = fluxexp("debug=plan", "sampling.images_per_sample=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "32, of which 0 are done" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_error_of_all_ranks_is_printed_once(program: Program) -> None:
    code, _, stderr = program.ended(["sampling.step=4"], processes=2)
    assert stderr.count("did you mean 'sampling.steps'?") == 1
    assert code != 0
