"""`fluxexp.run` and `fluxexp.sweep` start real processes, and return what they made."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fluxexp
from fluxexp.errors import ConfigError, RunError

FAKE = {
    "model": "fake",
    **{"dataset.height": 32, "dataset.width": 32, "dataset.limit": 3},
    **{"metrics": "none", "report": "off", "tracking": "disabled"},
}


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run(processes: int, capsys: pytest.CaptureFixture[str]) -> None:
    run = fluxexp.run({**FAKE, "tracking.group": 'a "b", c'}, processes=processes)
    assert run.status == "complete"
    assert len(run.frame()) == 3
    assert run.settings["tracking.group"] == 'a "b", c'
    assert run.summary["versions"]["fluxexp"] == fluxexp.__version__
    printed = capsys.readouterr().out
    assert "complete: 3 of 3 images" in printed
    assert f"results in {run.directory}" in printed


def test_a_config_error_is_an_exception_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError) as refused:
        fluxexp.run({**FAKE, "sampling.step": 4}, quiet=True)
    assert (refused.value.exit_code, refused.value.directory) == (2, None)
    assert "did you mean 'sampling.steps'?" in str(refused.value)
    assert capsys.readouterr().out == ""


def test_a_search_is_refused() -> None:
    with pytest.raises(ConfigError, match="hydra/sweeper=optuna: makes several results"):
        fluxexp.sweep({"sampling.steps": [1, 2]}, ["hydra/sweeper=optuna"])


@pytest.mark.slow
def test_a_sweep() -> None:
    sweep = fluxexp.sweep({"sampling.steps": [1, 2], "sampling.guidance": [1.5, 3]}, FAKE, quiet=True)
    assert sweep.status == "complete"
    assert sweep.settings[3] == {"sampling.steps": 2, "sampling.guidance": 3.0}
    assert len(sweep.frame()) == 12
    again = fluxexp.sweep({"sampling.steps": [1, 2], "sampling.guidance": [1.5, 3]}, FAKE, quiet=True)
    assert again.directory == sweep.directory
    assert again.frame()["seconds"].equals(sweep.frame()["seconds"])


@pytest.mark.slow
def test_failed_tasks_and_failed_points(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    fixture = Path(__file__).parents[1] / "fixtures" / "results_0_1" / "outputs"
    image = next(fixture.glob("*/images/*.png")).read_bytes()
    (photos / "good.png").write_bytes(image)
    (photos / "bad.png").write_bytes(image[:200])
    folder = {"model": "fake", "metrics": "none", "report": "off", "tracking": "disabled", "dataset": "folder"}
    folder |= {"dataset.path": str(photos), "dataset.mask": "box", "dataset.prompt": "a cat, a dog"}
    run = fluxexp.run(folder, quiet=True)
    assert run.status == "complete_with_failures"
    ((key, error),) = run.failed.items()
    assert run.records[key].sample_key.startswith("bad")
    assert error
    with pytest.raises(RunError, match="exit code 2") as ended:
        fluxexp.sweep({"dataset.path": [str(photos), str(tmp_path / "nowhere")]}, folder, quiet=True)
    assert ended.value.directory is not None
    sweep = fluxexp.load(ended.value.directory)
    assert isinstance(sweep, fluxexp.SweepResult)
    assert len(sweep.failed_points) == 1


@pytest.mark.slow
def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    program = f"""
import fluxexp
try:
    fluxexp.run({FAKE | {"dataset.limit": 20000, "dataset": "shapes_many"}!r})
except KeyboardInterrupt as stopped:
    print("stopped:", stopped)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("generating"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert "stopped: the run was interrupted; the same call continues it" in rest
    (directory,) = (tmp_path / "outputs").iterdir()
    run = fluxexp.load(directory)
    assert isinstance(run, fluxexp.RunResult)
    assert run.summary["interrupted"]
