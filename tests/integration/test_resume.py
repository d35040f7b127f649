"""A killed run is continued with any number of processes, and each task is made once."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest

from tests.program import FAKE, TINY, Done, Program

SLOW = (*FAKE, "model.seconds_per_step=[0.05]", "sampling.steps=2", "dataset.length=24", "sampling.batch_size=2")


def kill_after(program: Program, images: int, *arguments: str, processes: int, how: signal.Signals) -> None:
    """Start a run, and kill all its processes when `images` images exist."""
    with program.start_warm(*arguments, processes=processes) as process:
        deadline = time.monotonic() + 60
        while sum(len(list((path / "images").glob("*.png"))) for path in program.directories()) < images:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if how is signal.SIGKILL:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        process.communicate(timeout=60)


def assert_whole(done: Done, tasks: int) -> None:
    assert done.returncode == 0, done.stderr
    assert done.summary["status"] == "complete"
    assert (done.summary["num_tasks"], done.summary["num_ok"]) == (tasks, tasks)
    assert len(done.images) == tasks
    assert {record.file for record in done.records.values()} == {f"images/{name}" for name in done.images}
    assert not list((done.directory / "images").glob(".*")), "no incomplete file"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A program whose run was killed with two processes."""
    program = Program(tmp_path_factory.mktemp("killed"))
    kill_after(program, 6, *SLOW, processes=2, how=signal.SIGKILL)
    return program


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run of three images."""
    return Program(tmp_path_factory.mktemp("finished")).run(*FAKE, "dataset.limit=3")


@pytest.fixture
def first(finished: Done, program: Program) -> Done:
    """A copy of that run for `program`."""
    shutil.copytree(finished.directory.parent, program.cwd / "outputs")
    return replace(finished, directory=program.cwd / "outputs" / finished.directory.name)


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_is_continued(program: Program, killed: Program, processes: int) -> None:
    shutil.copytree(killed.cwd, program.cwd, dirs_exist_ok=True)
    done = program.run(*SLOW, processes=processes)
    assert_whole(done, 24)
    assert done.summary["num_resumed"] >= 5
    finished = Counter(record.key for record in done.attempts if record.status == "ok")
    assert set(finished.values()) == {1}, "finished tasks are not made again"
    assert len(program.directories()) == 1


@pytest.mark.slow
def test_an_interruption_changes_no_pixel(program: Program, alone: Done) -> None:
    arguments = (*TINY, "dataset.limit=7", "sampling.batch_size=1")
    kill_after(program, 2, *arguments, processes=1, how=signal.SIGKILL)
    continued = program.run(*arguments)
    assert_whole(continued, 7)
    assert continued.images == alone.images


def test_sigterm_loses_no_finished_image(program: Program) -> None:
    kill_after(program, 4, *SLOW, processes=1, how=signal.SIGTERM)
    done = program.run(*SLOW)
    assert_whole(done, 24)
    assert done.summary["num_resumed"] >= 4


def test_the_same_command_again_makes_no_image(program: Program, first: Done) -> None:
    images, summary = first.images, first.summary
    again = program.run(*FAKE, "dataset.limit=3", processes=2)
    assert again.returncode == 0, again.stderr
    assert "all 3 images exist" in again.stdout
    assert again.images == images
    assert len(again.attempts) == 3
    assert again.summary == summary, "the figures of the session that made the images stay"


def test_a_deleted_image_is_made_again(program: Program, first: Done) -> None:
    images = first.images
    next((first.directory / "images").iterdir()).unlink()
    again = program.run(*FAKE, "dataset.limit=3")
    assert again.images == images
    assert again.summary["num_resumed"] == 2


def test_overwrite_makes_all_images_again(program: Program, first: Done) -> None:
    images = first.images
    afresh = program.run(*FAKE, "dataset.limit=3", "output.overwrite=true")
    assert afresh.summary["num_resumed"] == 0
    assert afresh.images == images


@pytest.mark.usefixtures("first")
def test_a_larger_run_adds_to_the_smaller_one(program: Program) -> None:
    wider = program.run(*FAKE, "dataset.limit=4", "sampling.images_per_sample=2")
    assert_whole(wider, 8)
    assert wider.summary["num_resumed"] == 3


def test_another_config_has_another_directory(program: Program, first: Done) -> None:
    other = program.run(*FAKE, "dataset.limit=3", "sampling.steps=3")
    assert other.summary["num_resumed"] == 0
    assert other.directory.name != first.directory.name
    assert len(program.directories()) == 2


def test_failed_tasks_are_tried_again_and_attempts_counted(program: Program) -> None:
    failing = program.run(*FAKE, "model.fail_every=2", "dataset.limit=8")
    assert failing.returncode == 3
    num_failed = failing.summary["num_failed"]
    assert 0 < num_failed < 8
    cured = program.run(*FAKE, "dataset.limit=8")  # model.fail_every is not part of the fingerprint
    assert_whole(cured, 8)
    assert Counter(record.attempt for record in cured.records.values()) == {1: 8 - num_failed, 2: num_failed}


@pytest.mark.slow
def test_a_second_session_at_the_same_time_is_refused(program: Program) -> None:
    slow = (*SLOW, "model.seconds_per_step=[0.2]", "dataset.limit=30")
    with program.start_warm(*slow) as first:
        while not list(program.cwd.glob("outputs/*/images/*.png")):
            assert first.poll() is None
            time.sleep(0.02)
        with program.start_warm(*slow) as second:
            _, stderr = second.communicate(timeout=60)
        assert second.returncode == 1
        assert "in use by another session" in stderr
        first.communicate(timeout=60)
    assert first.returncode == 0
