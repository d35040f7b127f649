"""Interrupted sessions: the batch in work is finished, everything is written, and the same command continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.program import FAKE, Done, Program
from tests.warm import PATCH, WarmProcess

SLOW = (*FAKE, "model.seconds_per_step=[0.05]", "sampling.steps=2", "dataset.length=40", "sampling.batch_size=2")
HELD = (*FAKE, "model.seconds_per_step=[1000]", "sampling.steps=2", "dataset.length=4")
STUCK = """
import time
from pathlib import Path
from {module} import {owner}

def stuck(*_, **__):
    Path("stuck").touch()
    time.sleep(60)

{owner}.{name} = stuck
"""


@contextmanager
def started(
    program: Program, *arguments: str, images: int, processes: int = 1, launcher: str | None = None
) -> Iterator[subprocess.Popen[str] | WarmProcess]:
    """A started program that has made `images` images: in a fork of a warm process, or with a real launcher."""
    if launcher is None:
        process: subprocess.Popen[str] | WarmProcess = program.start_warm(*arguments, processes=processes)
    else:
        process = program.start(*arguments, processes=processes, launcher=launcher)
    with process:
        try:
            deadline = time.monotonic() + 90
            while len(list(program.cwd.glob("*/*/images/*.png"))) < images:
                assert process.poll() is None, process.communicate(timeout=10)
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def ended(program: Program, process: subprocess.Popen[str] | WarmProcess) -> Done:
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode is not None
    (directory,) = program.directories()
    return Done(process.returncode, stdout, stderr, directory)


def pids(done_or_directory: Path) -> dict[int, int]:
    """Process ids by rank, from the attempt logs."""
    heads = [json.loads(file.read_text().splitlines()[0])["process"] for file in done_or_directory.glob("attempts/*")]
    return {head["rank"]: head["pid"] for head in heads}


def assert_interrupted(done: Done, *, least: int = 1, tasks: int = 40) -> None:
    assert done.summary["status"] == "incomplete"
    assert done.summary["interrupted"] is True
    num_ok = done.summary["num_ok"]
    assert least <= num_ok < tasks
    assert len(done.images) == num_ok == len(done.records), "every image has its record"
    assert "run the same command again to continue" in done.stderr


def test_sigterm_finishes_the_batch_and_the_same_command_continues(program: Program) -> None:
    with started(program, *SLOW, images=4) as process:
        process.send_signal(signal.SIGTERM)
        first = ended(program, process)
    assert first.returncode == 75, first.stderr
    assert_interrupted(first, least=4)
    assert "SIGTERM: finishing the batches in work" in first.stderr
    (session,) = first.summary["sessions"]
    assert (session["interrupted"], session["num_images"]) == (True, first.summary["num_ok"])

    second = program.run(*SLOW)
    assert second.returncode == 0, second.stderr
    assert (second.summary["status"], second.summary["interrupted"]) == ("complete", False)
    earlier, latest = second.summary["sessions"]
    assert earlier == session, "figures of earlier sessions stay"
    assert latest["num_images"] == 40 - session["num_images"] == second.summary["ranks"][0]["num_images"]
    assert latest["wall_s"] == second.summary["wall_s"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1", "SIGUSR2"])
def test_other_signals_interrupt_as_well(program: Program, name: str) -> None:
    with started(program, *SLOW, images=2) as process:
        process.send_signal(signal.Signals[name])
        done = ended(program, process)
    assert done.returncode == 75, done.stderr
    assert_interrupted(done)
    assert f"{name}: finishing" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_stops_at_once(program: Program, name: str) -> None:
    number = signal.Signals[name]
    with program.start_warm(*HELD) as process:
        while not list(program.cwd.glob("outputs/*/attempts/*")):
            assert process.poll() is None, process.communicate(timeout=1)
            time.sleep(0.02)
        process.send_signal(number)
        time.sleep(1.2)
        assert process.poll() is None, "it finishes its batch"
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert not list(program.cwd.glob("outputs/*/summary.json"))


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "name"), [("torchrun", "SIGTERM"), ("accelerate", "SIGINT")])
def test_a_launcher_passes_the_signal_on_to_all_ranks(program: Program, launcher: str, name: str) -> None:
    with started(program, *SLOW, "parallelism=data", images=4, processes=2, launcher=launcher) as process:
        process.send_signal(signal.Signals[name])
        done = ended(program, process)
    assert done.returncode == 1, "launchers have a code of their own"
    assert_interrupted(done)
    assert [rank["error"] for rank in done.summary["ranks"]] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_the_session_on_all(program: Program, rank: int) -> None:
    with started(program, *SLOW, "parallelism=data", images=8, processes=2) as process:
        (directory,) = program.directories()
        os.kill(pids(directory)[rank], signal.SIGTERM)
        done = ended(program, process)
    assert_interrupted(done)
    assert [rank["error"] for rank in done.summary["ranks"]] == [None, None]
    assert done.summary["ranks"][1 - rank]["num_images"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [("fluxexp.experiment.planner", "Planner", "__call__"), ("fluxexp.models.fake", "FakeModel", "__init__")],
)
def test_planning_and_loading_end_at_once(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, owner: str, name: str
) -> None:
    patch = tmp_path / "patch.py"
    patch.write_text(STUCK.format(module=module, owner=owner, name=name))
    monkeypatch.setenv(PATCH, str(patch))
    with program.start_warm(*SLOW) as process:
        while not (program.cwd / "stuck").exists():
            assert process.poll() is None, process.communicate(timeout=1)
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 75


@pytest.mark.slow
def test_an_interrupted_sweep_starts_no_more_points(program: Program) -> None:
    arguments = ("-m", *SLOW, "sampling.guidance=1,2,3", "dataset.length=20", "sampling.batch_size=1")
    with started(program, *arguments, images=5) as process:
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stdout + stderr
    (sweep,) = program.directories("multirun", sweeps=True)
    summary = json.loads((sweep / "sweep.json").read_text())
    assert (summary["status"], summary["interrupted"]) == ("incomplete", True)
    assert 5 <= summary["num_ok"] < 60


@pytest.mark.slow
def test_an_interrupted_search_ends(program: Program) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    arguments = ("-m", "hydra/sweeper=optuna", "objective=device_s_per_image", "hydra.sweeper.n_trials=30")
    with started(program, *arguments, *SLOW, "sampling.steps=range(1,9)", images=5) as process:
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stdout + stderr
    assert len(list(program.cwd.glob("multirun/fill-*"))) < 10


def test_a_run_that_only_fails_stops(program: Program) -> None:
    failing = (*SLOW, "model.fail_every=1", "dataset.length=400", "model.seconds_per_step=[0.02]")
    done = program.run(*failing, "failures.max_failure_rate=0.9")
    assert done.returncode == 4, done.stderr
    assert done.summary["status"] == "incomplete"
    assert done.summary["interrupted"] is False
    assert "tasks failed (failures.max_failure_rate=0.9)" in done.summary["stopped"]
    assert 20 <= done.summary["num_failed"] < 400
    assert "most frequent reason: the model's output is not finite" in done.stderr
