"""Runs with output.shards=true: whole runs, kills, and everything that reads images."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fluxexp.address import Address
from fluxexp.storage.run_directory import RunDirectory
from tests.program import FAKE, Done, Program

SHARDS = ("output.shards=true", "output.shard_mib=1")
SLOW = (
    *FAKE,
    "model.seconds_per_step=[0.1]",
    "sampling.steps=2",
    "dataset.length=24",
    "sampling.batch_size=2",
    *SHARDS,
)


def images(done: Done) -> dict[str, bytes]:
    reader = RunDirectory(Address.of(done.directory)).reader
    return {f"{key}.png": reader.read_image(str(record.file)) for key, record in reader.outcomes().items()}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Done]:
    program = Program(tmp_path_factory.mktemp("sharded"))
    done = program.run(*FAKE, "dataset.limit=5", *SHARDS, processes=2)
    assert done.returncode == 0, done.stderr
    return program, done


def test_shards_have_the_images_of_files(program: Program, sharded: tuple[Program, Done]) -> None:
    files = program.run(*FAKE, "dataset.limit=5")
    assert files.returncode == 0, files.stderr
    assert images(sharded[1]) == files.images
    assert not (sharded[1].directory / "images").exists()
    assert sharded[1].summary["num_ok"] == 5


def test_the_same_command_makes_no_image_and_a_larger_one_only_new_ones(sharded: tuple[Program, Done]) -> None:
    program, _ = sharded
    again = program.run(*FAKE, "dataset.limit=5", *SHARDS)
    assert "all 5 images exist" in again.stdout, again.stderr
    more = program.run(*FAKE, "dataset.limit=7", *SHARDS)
    assert more.summary["num_resumed"] == 5
    assert len(images(more)) == 7


def test_a_run_with_shards_is_not_continued_with_files(sharded: tuple[Program, Done]) -> None:
    refused = sharded[0].run(*FAKE, "dataset.limit=9")
    assert refused.returncode == 1
    assert "has its images in shards: continue it with output.shards=true" in refused.stderr


@pytest.mark.slow
def test_a_killed_run_loses_only_open_shards(program: Program) -> None:
    assert program.run(*SLOW, "dataset.limit=8").returncode == 0
    with program.start_warm(*SLOW, processes=2) as process:
        deadline = time.monotonic() + 60
        while sum(file.stat().st_size > 0 for path in program.directories() for file in path.glob(".partial-*")) < 2:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    done = program.run(*SLOW, "metrics=basic", "report=html")
    assert done.returncode == 0, done.stderr
    assert done.summary["num_ok"] == 24
    assert done.summary["num_resumed"] == 8
    assert done.summary["scoring"]["num_scored"] == 24
    assert len(images(done)) == 24
    assert not list(done.directory.glob(".partial-*"))
    tars = {path.stem for path in done.directory.glob("shards/*.tar")}
    assert tars == {path.stem for path in done.directory.glob("shards/*.parquet")}
    _read_with_all_tools(program, done.directory)


def _read_with_all_tools(program: Program, directory: Path) -> None:
    for command in (
        ("fluxexp.report", directory),
        ("fluxexp.compare", directory, directory),
        ("fluxexp.gate", directory, directory),
        ("fluxexp.replay", directory),
        ("fluxexp.score", directory, "metrics=basic"),
    ):
        done = program.run_module(command[0], *map(str, command[1:]))
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (directory / "contact_sheet.png").is_file()
